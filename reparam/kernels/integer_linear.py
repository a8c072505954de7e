"""Matrix products of activation codes and packed integer weights as torch operators, opaque to a compiler.

On a CPU integer.cpp runs them, elsewhere or without a compiler `integer_reference`, with the same bits. What is
rounded how, and what becomes of numbers that are not finite, is said there. The caller has checked that no sum leaves
32 bits: sum_i |w[o, i]| * (largest + 1) < 2**31 is enough.
"""

import torch
from torch import Tensor

from reparam.errors import ReparamError
from reparam.kernels import integer_native, integer_reference
from reparam.kernels.integer_operands import require_float32
from reparam.kernels.integer_weight import pack_weight, require_packed, unpack_weight
from reparam.kernels.opaque import opaque

__all__ = ["grouped_integer_linear", "integer_linear", "integer_matmul", "pack_weight"]


def _fake_matmul(codes: Tensor, packed: Tensor, out_features: int) -> Tensor:
    return codes.new_empty(codes.shape[0], out_features, dtype=torch.int32)


@opaque(_fake_matmul)
def integer_matmul(codes: Tensor, packed: Tensor, out_features: int) -> Tensor:
    """Returns codes (M, I) int8 times a packed weight (O, I): (M, O) int32, exact.

    Raises:
        ReparamError: codes of another type, or a weight that is packed for other sizes.
    """
    if codes.dtype != torch.int8:
        raise ReparamError(f"integer_matmul takes codes in int8, not {codes.dtype}")
    require_packed(packed, outputs=out_features, inputs=codes.shape[1])
    if _suits_native(codes):
        return integer_native.matmul(codes, packed, out_features)
    return integer_reference.matmul(codes, unpack_weight(packed, out_features, codes.shape[1]))


def _fake_linear(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, largest: int = 127
) -> Tensor:
    return x.new_empty(x.shape[0], scale.shape[0])


@opaque(_fake_linear)
def integer_linear(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, largest: int = 127
) -> Tensor:
    """Rounds activations to codes, multiplies them by an integer weight, and scales the sums.

    Args:
        x: (M, I) float32.
        packed: the weight (O, I) by `pack_weight`.
        scale: (O,) float32, of each output.
        bias: (O,) float32.
        step: of the codes, a power of two, float32 with one element; None: each row's own, the smallest that reaches
            its values.
        largest: code, 127 of int8 or 32767 of int16, for which the weight must be packed.
    Returns:
        (M, O) float32. A row with a NaN gives NaN, and so does, without a step, one with an infinity.
    Raises:
        ReparamError: an operand has another type, device or size.
    """
    require_float32(x, packed, scale, bias, step)
    require_packed(packed, outputs=len(scale), inputs=x.shape[1], largest=largest)
    if _suits_native(x):
        return integer_native.linear(x, packed, scale, bias, step, largest)
    return integer_reference.linear(x, unpack_weight(packed, len(scale), x.shape[1]), scale, bias, step, largest)


def _fake_grouped(
    x: Tensor,
    packed_pair: Tensor,
    scales: Tensor,
    biases: Tensor | None,
    first: Tensor,
    step: Tensor | None,
    largest: int = 127,
) -> Tensor:
    return x.new_empty(x.shape[0], scales.shape[1])


@opaque(_fake_grouped)
def grouped_integer_linear(
    x: Tensor,
    packed_pair: Tensor,
    scales: Tensor,
    biases: Tensor | None,
    first: Tensor,
    step: Tensor | None,
    largest: int = 127,
) -> Tensor:
    """`integer_linear` with two weights: tokens that are sorted by their expert, for a mixture of two.

    Args:
        x: (M, I) float32.
        packed_pair: the weights (2, O, I) by `pack_weight`.
        scales: (2, O) float32.
        biases: (2, O) float32.
        first: (1,) int64, how many rows, from the top, have weight 0; the others have weight 1.
        step: as in `integer_linear`, with one element, or two for two grids.
        largest: as in `integer_linear`.
    Returns:
        (M, O) float32.
    Raises:
        ReparamError: as in `integer_linear`.
    """
    require_float32(x, packed_pair, scales, biases, step)
    outputs, inputs = scales.shape[1], x.shape[1]
    require_packed(packed_pair, 2, outputs=outputs, inputs=inputs, largest=largest)
    split = int(first)
    steps = (None, None) if step is None else step.flatten().expand(2).unbind()
    out = x.new_empty(len(x), outputs)
    for expert, rows in enumerate((slice(0, split), slice(split, None))):
        packed, bias = packed_pair[expert], None if biases is None else biases[expert]
        if _suits_native(x):
            integer_native.linear_into(out[rows], x[rows], packed, scales[expert], bias, steps[expert], largest)
        else:
            weight = unpack_weight(packed, outputs, inputs)
            out[rows] = integer_reference.linear(x[rows], weight, scales[expert], bias, steps[expert], largest)
    return out


def _suits_native(x: Tensor) -> bool:
    return x.device.type == "cpu" and integer_native.is_available()
