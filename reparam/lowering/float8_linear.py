"""A shift linear layer in float8 (e4m3): its weight exactly, its input with 4 significant bits, sums in float32.

    y = (x8 @ w8.T) * (step * scale[o]) + b[o],    x8 = round(x / step),    w8[o] = W[o] / scale[o]

step and scale are powers of two, so that the only rounding before the sum is that of the input.
"""

import copy

import torch
from torch import Tensor

from reparam.lowering.base import LoweredModule
from reparam.ops.fixed_point import grid_step
from reparam.ops.power_of_two import exponent_of, power_of_two
from reparam.ops.shift import ShiftLinear

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = int(torch.finfo(_FLOAT8).max)
#: Exponent of a channel's largest weight in float8. Below, 16 more powers of two are exact.
_TOP = 7
#: What torch's product wants inputs and outputs to be multiples of.
_ALIGNMENT = 16


class Float8ShiftLinear(LoweredModule):
    """Y = X W' + b in float8. Shapes as `ShiftLinear`.

    State: `codes` (O, I) uint8, the float8 numbers, and `scale` (O,) int32, the float32 ones: as bits, for the model is
    brought into bfloat16 as a whole. `step`: of the inputs, one number; None: each token has its own.
    """

    codes: Tensor
    scale: Tensor
    step: Tensor | None

    def __init__(self, layer: ShiftLinear, weight: Tensor, scale: Tensor, met: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = copy.deepcopy(layer.bias)
        self.register_buffer("codes", weight.view(torch.uint8))
        self.register_buffer("scale", scale.view(torch.int32))
        self.register_buffer("step", None if met is None else grid_step(met, _LARGEST))

    @property
    def weight(self) -> Tensor:
        """The rounded weight (O, I), bfloat16: for models that multiply by it themselves, or look where it is."""
        return (self.codes.view(_FLOAT8).float() * self.scale.view(torch.float32)[:, None]).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O), bfloat16."""
        rows = x.reshape(-1, self.in_features).float()
        if self.step is None:
            step = grid_step(rows.abs().amax(dim=1, keepdim=True), _LARGEST)
        else:
            step = self.step.float().repeat(len(rows), 1)
        codes = (rows / step).clamp(-_LARGEST, _LARGEST).to(_FLOAT8)
        weight, scale = self.codes.view(_FLOAT8), self.scale.view(torch.float32)
        out = torch._scaled_mm(
            codes, weight.t(), scale_a=step, scale_b=scale[None], bias=self.bias, out_dtype=torch.bfloat16
        )
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Shape and kind of step, for `repr`."""
        step = "one step a token" if self.step is None else "fixed step"
        return f"in_features={self.in_features}, out_features={self.out_features}, {step}"


def float8_linear(layer: ShiftLinear, met: Tensor | None) -> Float8ShiftLinear | None:
    """The form of a layer; None where its weight or its input's grid is not exact in float8, or a size does not suit.

    Args:
        layer: whose weight is tried.
        met: the largest input magnitude in a calibration, for a fixed step.
    """
    if layer.options.activation_bits or layer.in_features % _ALIGNMENT or layer.out_features % _ALIGNMENT:
        return None
    weight = layer.weight.detach().float()
    largest = weight.abs().amax(dim=1)
    scale = power_of_two(torch.where(largest == 0, 0, exponent_of(largest) - _TOP))
    narrow = (weight / scale[:, None]).to(_FLOAT8)
    is_exact = torch.equal(narrow.float() * scale[:, None], weight)
    return Float8ShiftLinear(layer, narrow, scale, met) if is_exact else None
