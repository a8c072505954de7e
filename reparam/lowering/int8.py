"""int8: integer products on a CPU, exact for the weights that a converted model has.

Shift layers run on int16 weights and int8 inputs with int32 sums, by `reparam.kernels`; adders on
int8 codes of inputs and weights; mixtures as grouped products of sorted tokens; binary attention in float32, where it
is linear in the tokens. What was not converted stays as it is.
"""

import torch
from torch import nn

from reparam.lowering.base import Backend, backend
from reparam.lowering.integer_adder import IntegerAdderConv2d, IntegerAdderLinear
from reparam.lowering.integer_experts import integer_experts
from reparam.lowering.integer_layers import IntegerShiftConv2d, IntegerShiftLinear, describe
from reparam.lowering.plain import PlainBinaryAttention
from reparam.ops.adder_conv2d import AdderConv2d
from reparam.ops.adder_linear import AdderLinear
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d


@backend("int8", title="integer products, for CPUs")
class Int8(Backend):
    """Integer forms on a CPU."""

    reads_ranges = reads_experts = True

    def form(self, module: nn.Module) -> tuple[nn.Module, str] | None:
        """The integer form of an operator, or the plain one of an attention."""
        met = self.settings.ranges
        if isinstance(module, ShiftLinear):
            linear = IntegerShiftLinear(module, met.get(module))
            return linear, describe(linear)
        if isinstance(module, ShiftConv2d):
            conv = IntegerShiftConv2d(module, met.get(module))
            return conv, describe(conv)
        if isinstance(module, AdderConv2d) and not module.options.mask:
            return IntegerAdderConv2d(module, met.get(module)), "sums of absolute differences of int8 codes"
        if isinstance(module, AdderLinear):
            return IntegerAdderLinear(module, met.get(module)), "sums of absolute differences of int8 codes"
        if isinstance(module, MoeMlp | RoutedLayer) and self.settings.experts == "int8":
            if experts := integer_experts(module, met):
                return experts, "grouped integer products, the multiply expert's weights in int8"
            return None
        if isinstance(module, BinaryLinearAttention):
            return PlainBinaryAttention(module), "binary attention in float32"
        return None

    def refuse(self, device: torch.device) -> str | None:
        """It runs on CPUs."""
        return None if device.type == "cpu" else f"runs on a CPU, and the model is on {device.type}"
