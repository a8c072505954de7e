"""A shift linear layer that holds its weight in 4 or 8 bits an entry and multiplies in bfloat16."""

import copy

import torch
from torch import Tensor

from reparam.kernels import packed_reference
from reparam.kernels.packed_linear import packed_linear
from reparam.lowering.base import LoweredModule
from reparam.lowering.packed_weight import PackedWeight
from reparam.lowering.plain import plain_activation
from reparam.ops.shift import ShiftLinear


class PackedShiftLinear(LoweredModule):
    """Y = X W' + b with W as packed codes. Shapes as `ShiftLinear`; `words` (O, W) int32, `scale` (O,)."""

    words: Tensor
    scale: Tensor

    def __init__(self, layer: ShiftLinear, packed: PackedWeight) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, packed.bits
        self.activation, self.bias = plain_activation(layer.activation), copy.deepcopy(layer.bias)
        self.register_buffer("words", packed.words)
        self.register_buffer("scale", packed.scale)

    @property
    def weight(self) -> Tensor:
        """The rounded weight (O, I), bfloat16: for models that multiply by it themselves, or look where it is."""
        return packed_reference.weight(self.words, self.scale, self.in_features, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O), bfloat16."""
        codes = self.activation(x).to(torch.bfloat16)
        return packed_linear(codes, self.words, self.scale, self.bias, self.in_features, self.bits)

    def extra_repr(self) -> str:
        """Shape and width of a code, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"
