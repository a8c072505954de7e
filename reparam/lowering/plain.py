"""Plain forms: the same values in floating point, weights rounded once, no gradient, nothing but torch's operations.

They are what every other backend may fall back on, and what exports are made from.
"""

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


class PlainBinaryAttention(LoweredModule, BinaryLinearAttention):
    """The operator with codes by comparison alone: nothing is kept for a gradient. Never builds N x M."""

    def __init__(self, core: BinaryLinearAttention) -> None:
        super().__init__(core.form, core.options)
        # Assigned, for the device is the operator's; clones, for it goes on training.
        self.load_state_dict({name: tensor.clone() for name, tensor in core.state_dict().items()}, assign=True)

    def encode(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        """Returns the codes of q or k, same shape and dtype."""
        if self.options.codes == "real":
            return super().encode(x, threshold)
        low = -1.0 if self.options.codes == "sign" else 0.0
        return torch.where(x >= (0.0 if threshold is None else threshold), 1.0, low).to(x.dtype)
