"""Adder weights from those of a pretrained multiplicative layer, by matching slopes.

For a normal input x ~ N(m, s**2), the best linear approximation of -|w - x| has, by Stein's lemma, the slope

    Cov(-|w - x|, x) / s**2 = P(x < w) - P(x > w) = erf((w - m) / (s * sqrt(2)))

which runs from -1 to 1 with w. So the adder weight w = m + s * sqrt(2) * erfinv(c) multiplies x by c on average, up to
a constant that the normalisation behind removes. c[o, k] is the dense weight, divided by a gain times the root mean
square of its output channel and clipped. A small gain makes most of them +-1, where -|w - x| is linear in most x.
"""

import math

import torch
from torch import Tensor

#: Largest slope: erfinv(1) is infinite.
_STEEPEST = 0.999


def slope_matched(weight: Tensor, *, mean: Tensor | float, std: Tensor | float, gain: float) -> Tensor:
    """Returns adder weights (O, ...) of dense weights (O, ...) for inputs of `mean` and `std` (broadcastable).

    Args:
        weight: of the dense layer; any float type.
        mean: of the inputs.
        std: of the inputs, above 0.
        gain: above 0; which multiple of a channel's root mean square becomes slope 1.
    """
    wide = weight.detach().float()
    axes = tuple(range(1, wide.ndim))
    size = wide.square().mean(axes, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    slope = (wide / (gain * size)).clamp(-_STEEPEST, _STEEPEST)
    return (mean + std * math.sqrt(2.0) * torch.erfinv(slope)).to(weight.dtype)
