"""DenseAttention: the softmax attention core that stands in a model before an operator takes its place.

    out = softmax(scale * q @ k') @ v

Put back in place of the original operations it must give the original's bits; that proves the surgery before any
operator is trusted. Shapes: q (..., N, D), k (..., M, D), v (..., M, E), out (..., N, E).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from reparam.ops.site import AttentionForm


class DenseAttention(nn.Module):
    """Exact softmax attention in the spelling that the model used: fused, or products around a softmax.

    `perturbation` scales the output; anything but 1 must change the model, or the core is not on its path.
    """

    def __init__(self, form: AttentionForm, *, perturbation: float = 1.0) -> None:
        super().__init__()
        self.form = form
        self.perturbation = perturbation

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends q (..., N, D) to k (..., M, D) and returns the weighted v (..., N, E)."""
        dropout = self.form.dropout if self.training else 0.0
        if self.form.is_fused:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.form.scale)
        else:
            scores = q @ k.transpose(-2, -1)
            scores = scores / self.form.scale if self.form.scale_divides else scores * self.form.scale
            out = F.dropout(scores.softmax(dim=-1), dropout, self.training) @ v
        return out if self.perturbation == 1.0 else out * self.perturbation
