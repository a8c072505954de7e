"""DenseAttention: the softmax attention core that stands in a model before an operator takes its place.

    out = softmax(scale * q @ k') @ v

Shapes: q (B, H, N, D), k (B, H, M, D), v (B, H, M, E), out (B, H, N, E); keys and values may have fewer heads.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from reparam.ops.site import AttentionForm


class DenseAttention(nn.Module):
    """Plain softmax attention of the described form; what a model adds to its scores is not a part of it."""

    def __init__(self, form: AttentionForm) -> None:
        super().__init__()
        self.form = form

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends q (B, H, N, D) to k (B, H, M, D) and returns the weighted v (B, H, N, E)."""
        dropout = self.form.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=self.form.scale, enable_gqa=self.form.key_heads is not None
        )
