"""float32: the same values as the converted model in eval mode, without rounding any weight in a forward."""

from torch import nn

from reparam.lowering.base import Backend, backend
from reparam.lowering.plain import PlainBinaryAttention, PlainShiftConv2d, PlainShiftLinear
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d


@backend("float32", title="float32, anywhere")
class Float32(Backend):
    """Shift layers become linear layers and convolutions; mixtures route as ever; adders have one form only."""

    def form(self, module: nn.Module) -> tuple[nn.Module, str] | None:
        """The plain form of a shift layer or an attention."""
        if isinstance(module, ShiftLinear):
            return PlainShiftLinear(module), "linear layer with rounded weights"
        if isinstance(module, ShiftConv2d):
            return PlainShiftConv2d(module), "convolution with rounded weights"
        if isinstance(module, BinaryLinearAttention):
            return PlainBinaryAttention(module), "binary attention in float32"
        return None
