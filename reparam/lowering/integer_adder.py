"""Adder layers on int8 codes: inputs and weights on one grid, sums of absolute differences in int32.

    y[o] = norm(-(sum_k |n[o, k] - code[k]|) * step + b[o])

A difference needs both sides in the same unit, so one step covers the layer's weights and what a calibration met.
"""

import copy

import torch
from torch import Tensor

from reparam.errors import BackendError
from reparam.kernels.integer_adder import integer_adder
from reparam.kernels.integer_weight import pack_adder_weight, unpack_adder_weight
from reparam.lowering.base import LoweredModule
from reparam.lowering.input_codes import INT8
from reparam.ops.adder_conv2d import AdderConv2d
from reparam.ops.adder_layer import AdderLayer
from reparam.ops.adder_linear import AdderLinear
from reparam.ops.conv_form import ConvAttributes, ConvForm
from reparam.ops.fixed_point import grid_step

_ROWS = ConvForm(kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)


class _IntegerAdder(LoweredModule):
    """What the two adders share. State: `packed`, `step`, `scale` (O,) of ones, `bias` (O,)."""

    packed: Tensor
    step: Tensor
    scale: Tensor

    def __init__(self, layer: AdderLayer, form: ConvForm, met: Tensor | None) -> None:
        super().__init__()
        if met is None:
            raise BackendError(
                "an adder's inputs and weights share one step, which must be known: pass calibration=, a batch of real "
                "inputs that reach it with more than zeros, or lower to float32"
            )
        weight = layer.weight.detach().float()
        step = grid_step(torch.maximum(weight.abs().amax(), met), INT8)
        codes = torch.round(weight / step).clamp(-INT8 - 1, INT8).to(torch.int8)
        taps = codes if codes.ndim == 4 else codes[..., None, None]
        self.register_buffer("packed", pack_adder_weight(taps, groups=form.groups))
        self.register_buffer("step", step)
        self.register_buffer("scale", torch.ones(len(weight)))
        self._shape = weight.shape
        self.form, self.bias, self.norm = form, copy.deepcopy(layer.bias), copy.deepcopy(layer.norm)

    @property
    def weight(self) -> Tensor:
        """The weight on its grid, float32, in the layer's shape: for models that look at it."""
        outputs, inputs = self._shape[:2]
        geometry = self.form.geometry(inputs=inputs * self.form.groups, outputs=outputs)
        by_tap = unpack_adder_weight(self.packed, geometry).flatten(0, 1)
        return by_tap.movedim(-1, 1).reshape(self._shape) * self.step

    def differences(self, x: Tensor) -> Tensor:
        """Maps x (B, H, W, I) to (B, OH, OW, O)."""
        form = self.form
        sizes = (form.kernel, form.stride, form.padding, form.dilation, form.groups)
        return integer_adder(x.float(), self.packed, self.scale, self.bias, self.step, *sizes)


class IntegerAdderConv2d(_IntegerAdder, ConvAttributes):
    """An adder convolution in integers. Shapes as `AdderConv2d`, whose padded pixels count, with code 0."""

    def __init__(self, layer: AdderConv2d, met: Tensor | None) -> None:
        super().__init__(layer, layer.form, met)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, OH, OW)."""
        pixels = self.form.prepared(x).permute(0, 2, 3, 1)
        out: Tensor = self.norm(self.differences(pixels).permute(0, 3, 1, 2))
        return out


class IntegerAdderLinear(_IntegerAdder):
    """An adder layer in integers. Shapes as `AdderLinear`."""

    def __init__(self, layer: AdderLinear, met: Tensor | None) -> None:
        super().__init__(layer, _ROWS, met)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O)."""
        rows = self.differences(x.reshape(-1, 1, 1, self.in_features)).flatten(1)
        out: Tensor = self.norm(rows)
        return out.view(*x.shape[:-1], self.out_features)
