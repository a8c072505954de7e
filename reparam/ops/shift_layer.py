"""What shift layers share, linear or convolution: latent parameters, the rounded weight, a fixed-point input."""

import torch
from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.ops.base import Operator
from reparam.ops.fixed_point import FixedPoint
from reparam.ops.power_of_two import exponent_of
from reparam.ops.shift_fit import least_squares_offset
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
        self.register_buffer("offset", _first_offset(weight, options) if options.per_channel_offset else zero)
        self.register_buffer("kept", None)
        self.bias = None if bias is None else nn.Parameter(bias.detach())
        if options.parameterisation == "q":
            self.latent = nn.Parameter(weight.detach())
        else:
            self._init_shift_and_sign(weight.detach(), self.offset)
        bits, rounding = options.activation_bits, options.activation_rounding
        self.activation = FixedPoint(bits, rounding=rounding) if bits else nn.Identity()

    def _init_shift_and_sign(self, weight: Tensor, offset: Tensor) -> None:
        shift, sign = self._shift_and_sign(weight, offset)
        self.shift, self.sign = nn.Parameter(shift), nn.Parameter(sign)

    def _shift_and_sign(self, weight: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        start = shift_weight(weight.float(), offset, self.options)
        shift = (exponent_of(start) - offset).clamp(self.options.lowest_exponent, 0)
        return shift.to(weight.dtype), torch.sign(start).to(weight.dtype)

    @torch.no_grad()
    def set_weight_(self, weight: Tensor, offset: Tensor) -> None:
        """Makes `weight` (O, ...) the layer's, with the channels' exponents `offset` (O, 1, ...).

        It is rounded as ever; values of the grid stay as they are.
        """
        self.offset.copy_(offset)
        if self.options.parameterisation == "q":
            self.latent.copy_(weight)
            return
        for parameter, value in zip((self.shift, self.sign), self._shift_and_sign(weight, offset), strict=True):
            parameter.copy_(value)

    @property
    def weight(self) -> Tensor:
        """The rounded weights (O, ...), zero where pruned; gradients reach the latent parameters."""
        if self.options.parameterisation == "q":
            rounded = shift_weight(self.latent, self.offset, self.options, training=self.training)
        else:
            rounded = shift_and_sign_weight(self.shift, self.sign, self.offset, self.options)
        return rounded if self.kept is None else rounded * self.kept

    def weight_words(self) -> dict[str, int]:
        """A sign and an exponent code for each term of a weight, whatever trains it, and the bias in floats.

        The offset of a channel is added to the exponents of its output and is no word of its own.
        """
        latent = self.latent if self.options.parameterisation == "q" else self.shift
        codes = self.options.terms * latent.numel()
        return {f"i{self.options.bits}": codes, "f32": 0 if self.bias is None else self.bias.numel()}

    def count(self, *, inputs: int, outputs: int, products: int) -> OpCount:
        """A shift and an add per term of a product, an add per output for the bias, scaling of a fixed-point input.

        Fixed-point operands are summed in 32 bits.
        """
        shifts = self.options.terms * products
        sums = shifts + (outputs if self.bias is not None else 0)
        if not self.options.activation_bits:
            return OpCount({("shift", "f32"): shifts, ("add", "f32"): sums})
        scaling = OpCount({("shift", "f32"): 2 * inputs, ("cmp", "f32"): 2 * inputs})
        return OpCount({("shift", f"i{self.options.activation_bits}"): shifts, ("add", "i32"): sums}) + scaling

    def width_repr(self) -> str:
        """Bits, and terms where there are several, for `repr`."""
        terms = f", terms={self.options.terms}" if self.options.terms > 1 else ""
        return f"bits={self.options.bits}{terms}"


def _first_offset(weight: Tensor, options: ShiftOptions) -> Tensor:
    if options.init == "rounded":
        return channel_offset(weight, domain=options.domain)
    return least_squares_offset(weight, options)
