"""shift_linear: a linear layer whose weights are signed powers of two, so each product is a bit shift.

    y = x @ W' + b,   W[o, i] in {0, +-2**p},   p in [e[o] + p_min, e[o]]

e[o] is a power-of-two offset per output channel (one shift of the accumulator: free in hardware). b bits are one sign
bit and b - 1 bits of exponent code, of which one code is zero: p_min = -(2**(b - 1) - 2), or one lower without it.

Source: DeepShift, arXiv:1905.13298 (Q and PS). Repaired: no parameter is changed in forward, the range follows each
channel's largest weight, zero has a code of its own, rounding is exact.
Shapes: x (..., I), W (O, I), y (..., O).
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.counts import OpCount
from reparam.ops.base import Example, Operator, OperatorOptions, operator
from reparam.ops.fixed_point import FixedPoint
from reparam.ops.plain_layer import is_plain
from reparam.ops.power_of_two import (
    Domain,
    exponent_of,
    power_of_two,
    round_to_power_of_two,
    round_to_power_of_two_stochastically,
)
from reparam.ops.site import Site
from reparam.ops.ste import straight_through


class ShiftLinearOptions(OperatorOptions):
    """Options of `shift_linear`; the defaults are ours, `deepshift-q` and `deepshift-ps` set the published ones."""

    parameterisation: Literal["q", "ps"] = Field("q", description="q trains one latent weight, ps a shift and a sign.")
    bits: int = Field(5, ge=2, le=8, description="Width of one weight, sign included.")
    domain: Domain = Field("log", description="Nearest exponent (log) or nearest value (linear).")
    rounding: Literal["nearest", "stochastic"] = Field("nearest", description="Stochastic applies in training only.")
    per_channel_offset: bool = Field(True, description="Shift each output channel's range to its largest weight.")
    zero_code: bool = Field(True, description="Spend one code on zero.")
    activation_bits: Literal[0, 8, 16] = Field(0, description="Fixed-point width of the input; 0 leaves it float.")
    activation_rounding: Literal["nearest", "floor"] = Field(
        "nearest", description="Rounding of the fixed-point input."
    )

    @model_validator(mode="after")
    def _ps_has_a_zero(self) -> "ShiftLinearOptions":
        if self.parameterisation == "ps" and not self.zero_code:
            raise ValueError('parameterisation "ps" always has a zero code; set zero_code = true')
        if self.parameterisation == "ps" and self.rounding == "stochastic":
            raise ValueError('stochastic rounding is defined for parameterisation "q" only')
        return self

    @property
    def lowest_exponent(self) -> int:
        """p_min, relative to the channel's offset."""
        return -((1 << (self.bits - 1)) - (2 if self.zero_code else 1))


def channel_offset(weight: Tensor, *, domain: Domain = "log") -> Tensor:
    """Returns e (O, 1) int8: 2**e is the power of two nearest to a row's largest magnitude; 0 for a row of zeros."""
    largest = weight.detach().float().abs().amax(dim=1, keepdim=True)
    exponent = exponent_of(round_to_power_of_two(largest, domain=domain))
    return torch.where(largest == 0, 0, exponent).to(torch.int8)


def shift_weight(weight: Tensor, offset: Tensor, options: ShiftLinearOptions, *, training: bool = False) -> Tensor:
    """Rounds each weight to a signed power of two in its channel's range (DeepShift-Q).

    Backward is the identity, except that a latent beyond twice the channel's largest power is not pushed further out.

    Args:
        weight: (O, I) latent weights.
        offset: (O, 1) integer exponents e.
        options: bits, domain, rounding, zero code.
        training: whether stochastic rounding draws.
    Returns:
        (O, I), the latent's dtype; 0 where the weight is below half the smallest power, if there is a zero code; else
        magnitudes are clamped into [2**(e + p_min), 2**e] and only an exact 0 stays 0.
    """
    if weight.is_meta:
        return weight  # only the shape is asked for, and elementwise operations are slow there
    latent = weight.detach()
    top = power_of_two(offset)
    bottom = power_of_two(offset.to(torch.int32) + options.lowest_exponent)
    if training and options.rounding == "stochastic":
        rounded = round_to_power_of_two_stochastically(latent.float())
    else:
        rounded = round_to_power_of_two(latent, domain=options.domain)
    magnitude = torch.minimum(torch.maximum(rounded.abs(), bottom), top)
    is_zero = latent.abs() < bottom / 2 if options.zero_code else latent == 0
    value = torch.copysign(magnitude, latent).masked_fill(is_zero, 0.0).to(weight.dtype)
    return straight_through(weight, value, limit=2 * top)


class _ShiftAndSign(torch.autograd.Function):
    """w = t * 2**(p + e), p = round(clamp(shift, p_min, 0)), t = sign(round(sign)) in {-1, 0, 1}.

    Backward, with G = dL/dw: dL/dsign = G (not scaled by 2**p) and dL/dshift = G * w * ln 2, as DeepShift published; no
    gradient pushes a sign beyond [-1, 1] or a shift beyond [p_min, 0] further out, for there it could not come back.
    """

    @staticmethod
    def forward(ctx: Any, shift: Tensor, sign: Tensor, offset: Tensor, lowest: int) -> Tensor:
        exponent = torch.round(shift.clamp(lowest, 0)).to(torch.int32) + offset
        weight = (torch.sign(torch.round(sign)) * power_of_two(exponent)).to(sign.dtype)
        ctx.save_for_backward(weight, shift, sign)
        ctx.lowest = lowest
        return weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, shift, sign = ctx.saved_tensors
        by_shift = gradient * weight * math.log(2.0)
        # Descent moves against the gradient.
        shift_leaves = ((shift > 0) & (by_shift < 0)) | ((shift < ctx.lowest) & (by_shift > 0))
        sign_leaves = (sign.abs() > 1) & (gradient * sign < 0)
        return by_shift.masked_fill(shift_leaves, 0.0), gradient.masked_fill(sign_leaves, 0.0), None, None


def _is_plain_linear(dense: nn.Module) -> bool:
    return isinstance(dense, nn.Linear) and is_plain(dense, "linear", (1, dense.in_features))


@operator("shift_linear", kind="linear", source="arXiv:1905.13298")
class ShiftLinear(Operator):
    """y = x @ W' + b with W rounded to signed powers of two.  Before: O*I mul + O*I add.  After: O*I shift + O*I add.

    Reading `.weight` gives the rounded weights, also to models that call `F.linear(x, layer.weight)` themselves.
    State: `latent` (O, I), or `shift` and `sign` (O, I) for ps; `bias` (O,); `offset` (O, 1) int8.
    """

    Options = ShiftLinearOptions
    no_decay = ("shift", "sign")
    offset: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, options: ShiftLinearOptions) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.options = options
        zero = torch.zeros(self.out_features, 1, dtype=torch.int8, device=weight.device)
        offset = channel_offset(weight, domain=options.domain) if options.per_channel_offset else zero
        self.register_buffer("offset", offset)
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
        """The rounded weights (O, I); gradients reach the latent parameters."""
        if self.options.parameterisation == "q":
            return shift_weight(self.latent, self.offset, self.options, training=self.training)
        rounded: Tensor = _ShiftAndSign.apply(self.shift, self.sign, self.offset, self.options.lowest_exponent)
        return rounded

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O)."""
        return F.linear(self.activation(x), self.weight, self.bias)

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: ShiftLinearOptions) -> str | None:
        """Takes any `nn.Linear` whose weight is its own, and subclasses whose forward does the same."""
        if site.shared_with:
            return f'its weight is shared with "{site.shared_with[0]}", which would stay dense'
        if type(dense) is not nn.Linear and not _is_plain_linear(dense):
            return f"{site.type} is not torch.nn.Linear; its own forward would be lost"
        return None

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: ShiftLinearOptions) -> "ShiftLinear":
        """Carries over weight and bias of an `nn.Linear`, sharing their storage."""
        assert isinstance(dense, nn.Linear)
        layer = cls(dense.weight, dense.bias, options)
        for parameter in layer.parameters():
            parameter.requires_grad_(dense.weight.requires_grad)
        return layer.train(dense.training)

    def op_count(self, *input_shapes: tuple[int, ...]) -> OpCount:
        """One shift and one add per product, one add per output for the bias, and fixed-point scaling of the input."""
        rows = math.prod(input_shapes[0][:-1])
        products = rows * self.in_features * self.out_features
        bias = rows * self.out_features if self.bias is not None else 0
        operand = f"i{self.options.activation_bits}" if self.options.activation_bits else "f32"
        inputs = rows * self.in_features if self.options.activation_bits else 0
        fixed_point = OpCount({("shift", "f32"): 2 * inputs, ("cmp", "f32"): 2 * inputs})
        return OpCount({("shift", operand): products, ("add", operand): products + bias}) + fixed_point

    @classmethod
    def examples(cls) -> list[Example]:
        """Every parameterisation and a plain subclass; refused: a shared weight, a subclass that does more."""
        site = Site(
            path="fc",
            kind="linear",
            type="torch.nn.modules.linear.Linear",
            input_shape=(2, 3, 8),
            output_shape=(2, 3, 4),
        )

        def example(name: str, refusal: str | None = None, **fields: Any) -> Example:
            dense = fields.pop("dense", lambda: nn.Linear(8, 4))
            chosen = site.model_copy(update={"shared_with": fields.pop("shared_with", ())})
            return Example(
                name=name,
                site=chosen.model_copy(update={"type": fields.pop("type", site.type)}),
                dense=dense,
                inputs=lambda: (torch.randn(2, 3, 8),),
                options=ShiftLinearOptions(**fields),
                refusal=refusal,
            )

        class Doubled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        class Renamed(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return F.linear(input, self.weight, self.bias)

        return [
            example("q"),
            example("q-plain-subclass", dense=lambda: Renamed(8, 4), type="user.Renamed"),
            example("q-no-bias", dense=lambda: nn.Linear(8, 4, bias=False)),
            example("q-2-bits", bits=2),
            example("q-8-bits-linear-domain", bits=8, domain="linear"),
            example("q-as-published", per_channel_offset=False, zero_code=False, activation_bits=16),
            example("q-stochastic", rounding="stochastic"),
            example("q-int8-activations", activation_bits=8),
            example("ps", parameterisation="ps"),
            example("ps-floor-activations", parameterisation="ps", activation_bits=16, activation_rounding="floor"),
            example(
                "shared", shared_with=("head",), refusal='its weight is shared with "head", which would stay dense'
            ),
            example(
                "subclass",
                dense=lambda: Doubled(8, 4),
                type="user.Doubled",
                refusal="user.Doubled is not torch.nn.Linear; its own forward would be lost",
            ),
        ]

    def extra_repr(self) -> str:
        """Shape and bits, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.options.bits}"
