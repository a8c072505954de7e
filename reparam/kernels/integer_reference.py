"""Integer layers in plain torch, on any device; integer.cpp and integer_adder.cpp give the same bits.

    codes = clamp(round(x / step), -largest - 1, largest)          ties to even
    y     = float32(sum codes * w) * (step * scale) + bias         every operation rounded to float32, none fused

    of an adder: -sum |w - code| in the place of sum codes * w

Sums are taken in float64, exactly, for they stay below 2**53.
"""

import torch
from torch import Tensor

from reparam.kernels import adder_reference
from reparam.kernels.geometry import Geometry

_INFINITY = 0x7F800000  # bits of a float32, whose magnitudes are ordered as integers
_NAN = float("nan")


def quantise(x: Tensor, step: Tensor | None, largest: int) -> tuple[Tensor, Tensor]:
    """Rounds rows of numbers to codes.

    Args:
        x: (N, K) float32.
        step: a power of two, float32 with one element; or None: each row gets the smallest 2**e, with e at least -126,
            that has largest * 2**e >= max |row|.
        largest: code, at most 32767.
    Returns:
        Codes (N, K), int8 where they fit and else int16, and the steps (N, 1). A step is NaN where the row holds a
        NaN, or, without a step that was given, an infinity: so that nothing that is made of the row looks like a
        number. With one, infinities saturate.
    """
    bits = x.view(torch.int32) & 0x7FFFFFFF
    most = bits.amax(1, keepdim=True) if x.numel() else x.new_zeros(len(x), 1).int()
    if step is None:
        # With largest = 1.g * 2**l, m = 1.f * 2**k wants e = k - l, and one more where f > g: adding carries then.
        exponent = largest.bit_length() - 1
        fraction = (largest << 23 >> exponent) - (1 << 23)
        power = (most.clamp_max(_INFINITY) + (0x7FFFFF - fraction)) & _INFINITY
        steps = (power - (exponent << 23)).clamp_min(1 << 23).view(torch.float32)
        steps = steps.masked_fill(most >= _INFINITY, _NAN)
    else:
        steps = step.reshape(1, 1).expand(len(x), 1).masked_fill(most > _INFINITY, _NAN)
    codes = (x * steps.reciprocal()).clamp(-largest - 1, largest).round().nan_to_num(0.0)
    return codes.to(torch.int8 if largest <= 127 else torch.int16), steps


def quantise_images(x: Tensor, step: Tensor | None, largest: int) -> tuple[Tensor, Tensor]:
    """The same of images (B, ...); codes in their shape, and steps (B,)."""
    codes, steps = quantise(x.flatten(1), step, largest)
    return codes.view(x.shape), steps.flatten()


def matmul(codes: Tensor, weight: Tensor) -> Tensor:
    """Returns codes (M, I) int8 times a weight (O, I): (M, O) int32."""
    return _sums(codes, weight).to(torch.int32)


def linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, largest: int) -> Tensor:
    """Returns y (M, O) of x (M, I), a weight (O, I), scale (O,) and bias (O,), all float32 but the integer weight."""
    codes, steps = quantise(x, step, largest)
    return _scaled(_sums(codes, weight), steps, scale, bias)


def conv2d(
    codes: Tensor, steps: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Returns y (B, OH, OW, G * O) of codes (B, H, W, G * I) in steps (B,), and a weight (G, O, KH, KW, I)."""
    padded = geometry.padded(codes)
    sums = steps.new_zeros(geometry.groups, geometry.pixels, geometry.out_channels, dtype=torch.float64)
    for i in range(geometry.kernel[0]):
        for j in range(geometry.kernel[1]):
            pixels = geometry.tap(padded, i, j).reshape(geometry.pixels, geometry.groups, geometry.in_channels)
            sums += _sums(pixels.transpose(0, 1), weight[:, :, i, j])
    rows = sums.transpose(0, 1).reshape(*geometry.output_shape)
    return _scaled(rows, steps.view(-1, 1, 1, 1), scale, bias)


def adder_conv2d(
    codes: Tensor, steps: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """The same with -|w - code| in the place of products."""
    by_tap = weight.flatten(0, 1).movedim(-1, 1)
    sums = adder_reference.forward(codes.double(), by_tap.double(), geometry)
    return _scaled(sums, steps.view(-1, 1, 1, 1), scale, bias)


def _sums(codes: Tensor, weight: Tensor) -> Tensor:
    return codes.double() @ weight.double().mT


def _scaled(sums: Tensor, steps: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    out = sums.float() * (steps * scale)
    return out if bias is None else out + bias
