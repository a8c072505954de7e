"""Plain forms: the same values in floating point, weights rounded once, no gradient, nothing but torch's operations.

They are what every other backend may fall back on, and what exports are made from.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.lowering.base import LoweredModule
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.conv_form import ConvAttributes
from reparam.ops.fixed_point import FixedPoint
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d


class PlainGrid(LoweredModule):
    """A fixed-point grid whose step no longer changes: x (any shape) becomes n * step, float32."""

    step: Tensor

    def __init__(self, grid: FixedPoint) -> None:
        super().__init__()
        self.largest, self.rounding = grid.largest, grid.rounding
        self.register_buffer("step", grid.step().detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Rounds `x`, any shape."""
        scaled = x / self.step
        rounded = scaled.floor() if self.rounding == "floor" else scaled.round()
        return rounded.clamp(-self.largest - 1, self.largest) * self.step


def plain_activation(activation: nn.Module) -> nn.Module:
    """The form of a shift layer's `activation`: a grid or the identity."""
    return PlainGrid(activation) if isinstance(activation, FixedPoint) else nn.Identity()


class PlainShiftLinear(LoweredModule, nn.Linear):
    """Y = X W' + b with the rounded weight as an ordinary one. Shapes as `ShiftLinear`."""

    def __init__(self, layer: ShiftLinear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = _weight(layer), _bias(layer)
        self.activation = plain_activation(layer.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O)."""
        return F.linear(self.activation(x), self.weight, self.bias)


class PlainShiftConv2d(LoweredModule, ConvAttributes):
    """Y = conv2d(X, W') + b with the rounded weight as an ordinary one. Shapes as `ShiftConv2d`."""

    def __init__(self, layer: ShiftConv2d) -> None:
        super().__init__()
        self.form = layer.form
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.weight, self.bias = _weight(layer), _bias(layer)
        self.activation = plain_activation(layer.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, OH, OW)."""
        return self.form.conv2d(self.form.prepared(self.activation(x)), self.weight, self.bias)


def _weight(layer: ShiftLinear | ShiftConv2d) -> nn.Parameter:
    return nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def _bias(layer: ShiftLinear | ShiftConv2d) -> nn.Parameter:
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return bias  # type: ignore[return-value]  # torch's stub forgets that a layer may have none


class PlainBinaryAttention(LoweredModule):
    """Sum-normalised binary linear attention without what training needs; never builds N x M. Shapes as its operator.

    numerator = q (k' v) + c sum_j v[j],   normaliser = q (k' 1) + c M
    """

    def __init__(self, core: BinaryLinearAttention) -> None:
        super().__init__()
        self.low, self.constant = (-1.0 if core.options.codes == "sign" else 0.0), core.constant
        self.weighs_own = core.options.constant_term == "own"
        self.share = core.form.heads // core.key_heads if core.key_heads > 1 else 1
        self.threshold_q, self.threshold_k = copy.deepcopy((core.threshold_q, core.threshold_k))
        self.token_conv = copy.deepcopy(core.token_conv)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends q (B, H, N, D) to k (B, H, M, D) and returns (B, H, N, E)."""
        codes_q, codes_k = self._codes(q, self.threshold_q), self._codes(k, self.threshold_k)
        numerator = codes_q @ self._for_all_heads(codes_k.transpose(-2, -1) @ v)
        normaliser = codes_q @ self._for_all_heads(codes_k.sum(dim=-2).unsqueeze(-1))
        if self.constant:
            weighed = v if self.weighs_own else v.sum(dim=-2, keepdim=True)
            numerator = numerator + self._for_all_heads(self.constant * weighed)
            normaliser = normaliser + self.constant * k.shape[-2]
        mixed = numerator / normaliser.clamp_min(1.0)
        return mixed if self.token_conv is None else mixed + self._for_all_heads(self.token_conv(v))

    def _codes(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        is_high = x >= (0.0 if threshold is None else threshold)
        return torch.where(is_high, 1.0, self.low).to(x.dtype)

    def _for_all_heads(self, x: Tensor) -> Tensor:
        return x if self.share == 1 else x.repeat_interleave(self.share, dim=1)


def plain_attention(core: BinaryLinearAttention) -> nn.Module | None:
    """The plain form of a core; None for codes and normalisers whose operator is plain already."""
    is_binary = core.options.codes != "real" and core.options.normaliser == "sum"
    return PlainBinaryAttention(core) if is_binary else None
