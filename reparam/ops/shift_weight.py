"""Weights that are signed powers of two: options, rounding, and DeepShift's two parameterisations.

    w[o] = sum of k terms in {0, +-2**p},   p in [e[o] + p_min, e[o]]

e[o] is a power-of-two offset per output channel (one shift of the accumulator: free in hardware). b bits are one sign
bit and b - 1 bits of exponent code, of which one code is zero: p_min = -(2**(b - 1) - 2), or one lower without it.
One term is a shift layer as published; each further one rounds what the ones before left (additive powers of two).

Source: DeepShift, arXiv:1905.13298 (Q and PS); additive powers of two: Li et al., arXiv:1909.13144. Repaired: no
parameter is changed in forward, the range follows each channel's largest weight, zero has a code of its own, rounding
is exact.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from reparam.ops.base import OperatorOptions
from reparam.ops.power_of_two import (
    Domain,
    exponent_of,
    power_of_two,
    round_to_power_of_two,
    round_to_power_of_two_stochastically,
)
from reparam.ops.ste import straight_through

#: How a layer starts from dense weights.
Init = Literal["rounded", "least-squares", "calibrated"]


class ShiftOptions(OperatorOptions):
    """Options of shift layers; the defaults are ours, `deepshift-q` and `deepshift-ps` set the published ones."""

    parameterisation: Literal["q", "ps"] = Field("q", description="q trains one latent weight, ps a shift and a sign.")
    bits: int = Field(5, ge=2, le=8, description="Width of one term of a weight, sign included.")
    terms: int = Field(1, ge=1, le=3, description="Powers of two that a weight is the sum of; q only.")
    init: Init = Field(
        "rounded",
        description="Offsets by the largest weight (rounded) or the smallest squared error (least-squares), or the "
        "weights too by the layer's output on images (calibrated).",
    )
    bias_correction: bool = Field(
        False,
        description="Take the mean that rounding adds to the output off the bias or the batch norm behind, as far as "
        "batch norms know the layer's inputs; needs no data.",
    )
    domain: Domain = Field("log", description="Nearest exponent (log) or nearest value (linear).")
    rounding: Literal["nearest", "stochastic"] = Field("nearest", description="Stochastic applies in training only.")
    per_channel_offset: bool = Field(True, description="Shift each output channel's range to its largest weight.")
    zero_code: bool = Field(True, description="Spend one code on zero.")
    activation_bits: Literal[0, 8, 16] = Field(0, description="Fixed-point width of the input; 0 leaves it float.")
    activation_rounding: Literal["nearest", "floor"] = Field(
        "nearest", description="Rounding of the fixed-point input."
    )

    @model_validator(mode="after")
    def _ps_has_a_zero(self) -> "ShiftOptions":
        if self.parameterisation == "ps" and not self.zero_code:
            raise ValueError('parameterisation "ps" always has a zero code; set zero_code = true')
        if self.parameterisation == "ps" and self.rounding == "stochastic":
            raise ValueError('stochastic rounding is defined for parameterisation "q" only')
        return self

    @model_validator(mode="after")
    def _further_terms_can_be_left_out(self) -> "ShiftOptions":
        if self.terms > 1 and self.parameterisation == "ps":
            raise ValueError('parameterisation "ps" trains one shift and one sign for a weight; set terms = 1')
        if self.terms > 1 and not self.zero_code:
            raise ValueError("a second term needs a code for zero; set zero_code = true")
        return self

    @model_validator(mode="after")
    def _a_mean_is_corrected_once(self) -> "ShiftOptions":
        if self.bias_correction and self.init == "calibrated":
            raise ValueError("calibration corrects biases on its images; set bias_correction = false")
        return self

    @property
    def lowest_exponent(self) -> int:
        """p_min, relative to the channel's offset."""
        return -((1 << (self.bits - 1)) - (2 if self.zero_code else 1))


def channel_offset(weight: Tensor, *, domain: Domain = "log") -> Tensor:
    """Returns e (O, 1, ...) int8: 2**e is the power of two nearest to the largest magnitude of w[o]; 0 for zeros.

    Args:
        weight: (O, I) of a linear layer, (O, I / groups, KH, KW) of a convolution.
        domain: nearest exponent or nearest value.
    """
    largest = weight.detach().float().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    exponent = exponent_of(round_to_power_of_two(largest, domain=domain))
    return torch.where(largest == 0, 0, exponent).to(torch.int8)


def shift_weight(weight: Tensor, offset: Tensor, options: ShiftOptions, *, training: bool = False) -> Tensor:
    """Rounds each weight to a sum of signed powers of two in its channel's range (DeepShift-Q).

    Backward is the identity, except that a latent beyond twice the channel's largest value is not pushed further out.

    Args:
        weight: (O, ...) latent weights.
        offset: (O, 1, ...) integer exponents e.
        options: bits, terms, domain, rounding, zero code.
        training: whether stochastic rounding draws.
    Returns:
        (O, ...), the latent's dtype: the sum of `shift_terms`.
    """
    if weight.is_meta:
        return weight  # only the shape is asked for, and elementwise operations are slow there
    bottom, top = _range(offset, options)
    value = functools.reduce(torch.add, _terms(weight, bottom, top, options, training=training))
    return straight_through(weight, value.to(weight.dtype), limit=2 * options.terms * top)


def shift_terms(weight: Tensor, offset: Tensor, options: ShiftOptions, *, training: bool = False) -> Tensor:
    """Returns the powers that a weight becomes, each rounded from what the ones before it left: (terms, O, ...).

    Rounding the sum again gives the same sum, so these are also the terms of a weight that was chosen otherwise. A term
    is 0 where its rest is below half the smallest power, if there is a zero code; else magnitudes are clamped into
    [2**(e + p_min), 2**e] and only an exact 0 stays 0. Arguments as `shift_weight`.
    """
    return torch.stack([*_terms(weight, *_range(offset, options), options, training=training)])


def _range(offset: Tensor, options: ShiftOptions) -> tuple[Tensor, Tensor]:
    """Each channel's smallest and largest power."""
    exponent = offset.to(torch.int32)
    return power_of_two(exponent + options.lowest_exponent), power_of_two(exponent)


def _terms(weight: Tensor, bottom: Tensor, top: Tensor, options: ShiftOptions, *, training: bool) -> Iterator[Tensor]:
    """Each term in turn, in float32 or float64."""
    rest = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    bottom, top = bottom.to(rest.dtype), top.to(rest.dtype)
    is_drawn = training and options.rounding == "stochastic"
    for left in reversed(range(options.terms)):
        if is_drawn:
            term = round_to_power_of_two_stochastically(rest.float()).to(rest.dtype)
        else:
            term = round_to_power_of_two(rest, domain=options.domain)
        # In place: every training step does this to every weight.
        term.abs_().clamp_(bottom, top).copysign_(rest)
        term.masked_fill_(rest.abs() < bottom / 2 if options.zero_code else rest == 0, 0.0)
        yield term
        if left:
            rest = rest - term


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


def shift_and_sign_weight(shift: Tensor, sign: Tensor, offset: Tensor, options: ShiftOptions) -> Tensor:
    """Returns t * 2**(p + e) (O, ...) of DeepShift-PS, with the gradients stated in this file."""
    weight: Tensor = _ShiftAndSign.apply(shift, sign, offset, options.lowest_exponent)
    return weight
