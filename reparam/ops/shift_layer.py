"""What shift layers share, linear or convolution: latent parameters, the rounded weight, a fixed-point input."""

import torch
from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.ops.base import Operator
from reparam.ops.fixed_point import FixedPoint
from reparam.ops.power_of_two import exponent_of
from reparam.ops.shift_weight import ShiftOptions, channel_offset, shift_and_sign_weight, shift_weight


class ShiftLayer(Operator):
    """Base of the layers whose weight is rounded to signed powers of two; subclasses add their product.

    Reading `.weight` gives the rounded weights, also to models that call `F.linear(x, layer.weight)` themselves.
    State: `latent` (O, ...), or `shift` and `sign` (O, ...) for ps; `bias` (O,); `offset` (O, 1, ...) int8; `kept`
    (O, ...) bool where a subclass prunes: the other weights are zero, and their gradient is masked.
    """

    Options = ShiftOptions
    no_decay = ("shift", "sign")
    offset: Tensor
    kept: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, options: ShiftOptions) -> None:
        super().__init__()
        self.options = options
        zero = torch.zeros(len(weight), *[1] * (weight.ndim - 1), dtype=torch.int8, device=weight.device)
        offset = channel_offset(weight, domain=options.domain) if options.per_channel_offset else zero
        self.register_buffer("offset", offset)
        self.register_buffer("kept", None)
        self.bias = None if bias is None else nn.Parameter(bias.detach())
        if options.parameterisation == "q":
            self.latent = nn.Parameter(weight.detach())
        else:
            self._init_shift_and_sign(weight.detach(), offset)
        bits, rounding = options.activation_bits, options.activation_rounding
        self.activation = FixedPoint(bits, rounding=rounding) if bits else nn.Identity()

    def _init_shift_and_sign(self, weight: Tensor, offset: Tensor) -> None:
        start = shift_weight(weight.float(), offset, self.options)
        shift = (exponent_of(start) - offset).clamp(self.options.lowest_exponent, 0)
        self.shift = nn.Parameter(shift.to(weight.dtype))
        self.sign = nn.Parameter(torch.sign(start).to(weight.dtype))

    @property
    def weight(self) -> Tensor:
        """The rounded weights (O, ...), zero where pruned; gradients reach the latent parameters."""
        if self.options.parameterisation == "q":
            rounded = shift_weight(self.latent, self.offset, self.options, training=self.training)
        else:
            rounded = shift_and_sign_weight(self.shift, self.sign, self.offset, self.options)
        return rounded if self.kept is None else rounded * self.kept

    def weight_words(self) -> dict[str, int]:
        """A sign and an exponent code for each weight, whatever trains it, and the bias in floats.

        The offset of a channel is added to the exponents of its output and is no word of its own.
        """
        latent = self.latent if self.options.parameterisation == "q" else self.shift
        return {f"i{self.options.bits}": latent.numel(), "f32": 0 if self.bias is None else self.bias.numel()}

    def count(self, *, inputs: int, outputs: int, products: int) -> OpCount:
        """One shift and one add per product, one add per output for the bias, and fixed-point scaling of the input.

        Fixed-point operands are summed in 32 bits.
        """
        sums = products + (outputs if self.bias is not None else 0)
        if not self.options.activation_bits:
            return OpCount({("shift", "f32"): products, ("add", "f32"): sums})
        scaling = OpCount({("shift", "f32"): 2 * inputs, ("cmp", "f32"): 2 * inputs})
        return OpCount({("shift", f"i{self.options.activation_bits}"): products, ("add", "i32"): sums}) + scaling
