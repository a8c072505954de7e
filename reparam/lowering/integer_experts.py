"""The layers of a mixture as grouped integer products: int8 weights for the multiply expert, the shift expert's own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reparam.kernels.integer_linear import grouped_integer_linear
from reparam.kernels.integer_weight import LARGEST_BYTE, fits_bytes, pack_weight
from reparam.lowering.grouped_experts import GroupedExperts, GroupedLayer, grouped_experts, is_grouped_alike
from reparam.lowering.input_codes import INT8
from reparam.lowering.integer_weight import IntegerWeight, rounded_weight, shift_parts
from reparam.ops.fixed_point import grid_step
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.shift import ShiftLinear


class GroupedIntegerLinear(GroupedLayer):
    """One layer of both experts: int8 weights for the multiply expert, the shift expert's own, exactly."""

    packed: Tensor
    scale: Tensor
    bias: Tensor | None
    step: Tensor | None

    def __init__(
        self, multiply: nn.Module, shift: ShiftLinear, own: IntegerWeight, met: Mapping[nn.Module, Tensor]
    ) -> None:
        super().__init__()
        assert isinstance(multiply, nn.Linear | nn.Conv2d)
        # Both are in one layout. Bytes take less time than 16-bit words, and hold what a 4-bit shift weight needs; the
        # multiply expert's 64 steps in the place of 127 cost little (docs/design.md).
        both = (rounded_weight(multiply, largest=LARGEST_BYTE if fits_bytes(own.values) else INT8), own)
        self.register_buffer("packed", pack_weight(torch.stack([part.values for part in both])))
        self.register_buffer("scale", torch.stack([part.scale for part in both]))
        biases = [bias.detach() for bias in (multiply.bias, shift.bias) if bias is not None]
        self.register_buffer("bias", torch.stack(biases) if biases else None)
        largest = [met[layer] for layer in (multiply, shift) if layer in met]
        self.register_buffer("step", grid_step(torch.stack(largest).amax(), INT8) if largest else None)

    def forward(self, rows: Tensor, first: Tensor) -> Tensor:
        """As `GroupedLayer`; float32."""
        return grouped_integer_linear(rows, self.packed, self.scale, self.bias, first, self.step)


def integer_experts(module: MoeMlp | RoutedLayer, met: Mapping[nn.Module, Tensor]) -> GroupedExperts | None:
    """The integer form of a mixture; None where its experts are no chain, have grids, or need more than one product.

    Args:
        module: a mixture, or one routed layer.
        met: largest input magnitudes of its layers where a calibration met them, for fixed steps.
    """

    def make(multiply: nn.Module, shift: ShiftLinear) -> GroupedIntegerLinear | None:
        if not is_grouped_alike(multiply, shift):
            return None
        first, *others = shift_parts(shift, largest=INT8)
        return None if others else GroupedIntegerLinear(multiply, shift, first, met)

    return grouped_experts(module, make)
