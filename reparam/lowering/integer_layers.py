"""Shift layers as integer products: inputs become int8 or int16 codes, weights are int16 numbers, sums are int32.

    y = (sum_k code[k] * n[o, k]) * (step * scale[o]) + b[o]

step and scale are powers of two, so the only roundings are that of the input, and float32's where a sum passes 2**24.
"""

import copy
from abc import abstractmethod

from torch import Tensor, nn

from reparam.kernels.integer_conv2d import integer_conv2d
from reparam.kernels.integer_linear import integer_linear
from reparam.kernels.integer_weight import pack_conv2d_weight, pack_weight, unpack_conv2d_weight, unpack_weight
from reparam.lowering.base import LoweredModule
from reparam.lowering.input_codes import InputCodes
from reparam.lowering.integer_weight import IntegerWeight, shift_parts
from reparam.ops.conv_form import ConvAttributes
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d


class _Part(nn.Module):
    """One packed product. State: `packed` int8 or int16, `scale` (O,)."""

    packed: Tensor
    scale: Tensor

    def __init__(self, packed: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)


class _IntegerShift(LoweredModule):
    """What the two layers share: `parts`, whose sum is the weight."""

    parts: nn.ModuleList

    def _parts(self) -> list[_Part]:
        return [part for part in self.parts if isinstance(part, _Part)]

    @property
    def weight(self) -> Tensor:
        """The rounded weight (O, ...), float32: for models that multiply by it themselves, or look where it is."""
        first, *others = (
            weight * part.scale.view(-1, *[1] * (weight.ndim - 1))
            for part in self._parts()
            for weight in [self.unpacked(part.packed)]
        )
        return sum(others, start=first)

    @abstractmethod
    def unpacked(self, packed: Tensor) -> Tensor:
        """Returns the integers (O, ...) of one part."""


class IntegerShiftLinear(_IntegerShift):
    """Y = X W' + b in integers. Shapes as `ShiftLinear`."""

    def __init__(self, layer: ShiftLinear, met: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.codes, self.bias = InputCodes(layer.activation, met), copy.deepcopy(layer.bias)
        largest = self.codes.largest
        parts = shift_parts(layer, largest=largest)
        self.parts = nn.ModuleList([_Part(pack_weight(part.values, largest=largest), part.scale) for part in parts])

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O), float32."""
        rows = self.codes(x.reshape(-1, self.in_features))
        grid = self.codes.step, self.codes.largest
        first, *others = self._parts()
        out = integer_linear(rows, first.packed, first.scale, self.bias, *grid)
        for part in others:
            out = out + integer_linear(rows, part.packed, part.scale, None, *grid)
        return out.reshape(*x.shape[:-1], self.out_features)

    def unpacked(self, packed: Tensor) -> Tensor:
        """Integers (O, I)."""
        return unpack_weight(packed, self.out_features, self.in_features)

    def extra_repr(self) -> str:
        """Shape and codes, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {describe(self)}"


class IntegerShiftConv2d(_IntegerShift, ConvAttributes):
    """Y = conv2d(X, W') + b in integers. Shapes as `ShiftConv2d`."""

    def __init__(self, layer: ShiftConv2d, met: Tensor | None) -> None:
        super().__init__()
        self.form = layer.form
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.codes, self.bias = InputCodes(layer.activation, met), copy.deepcopy(layer.bias)
        parts = shift_parts(layer, largest=self.codes.largest)
        self.parts = nn.ModuleList([_Part(self._packed(part), part.scale) for part in parts])

    def _packed(self, part: IntegerWeight) -> Tensor:
        shape = (self.out_channels, self.in_channels // self.form.groups, *self.form.kernel)
        return pack_conv2d_weight(part.values.view(shape), groups=self.form.groups, largest=self.codes.largest)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, OH, OW), float32."""
        x, form, step = self.codes(self.form.prepared(x)), self.form, self.codes.step
        sizes = (form.kernel, form.stride, form.padding, form.dilation, form.groups, self.codes.largest)
        first, *others = self._parts()
        out = integer_conv2d(x, first.packed, first.scale, self.bias, step, *sizes)
        for part in others:
            out = out + integer_conv2d(x, part.packed, part.scale, None, step, *sizes)
        return out

    def unpacked(self, packed: Tensor) -> Tensor:
        """Integers (O, I / groups, KH, KW)."""
        geometry = self.form.geometry(inputs=self.in_channels, outputs=self.out_channels)
        return unpack_conv2d_weight(packed, geometry).flatten(0, 1).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Shape and codes, for `repr`."""
        shape = f"{self.in_channels}, {self.out_channels}, kernel={self.form.kernel}, stride={self.form.stride}"
        return f"{shape}, {describe(self)}"


def describe(layer: IntegerShiftLinear | IntegerShiftConv2d) -> str:
    """The form of a layer, for the list of layers and `repr`."""
    products = "" if len(layer.parts) == 1 else f" in {len(layer.parts)} products"
    return f"integers{products}, {layer.codes.describe()}"
