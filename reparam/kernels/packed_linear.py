"""A linear layer whose weight is packed powers of two, as one torch operator, opaque to a compiler.

| device | rows of x | what runs |
|---|---|---|
| CUDA | up to `MOST_ROWS` | `packed_triton.linear`, which reads the codes |
| CUDA | more | the bfloat16 product of cuBLAS, on a weight that `packed_triton.weight` unpacks for this call |
| others | any | `packed_reference.linear` |

Nothing is read on the host, so that calls can be captured in a CUDA graph.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.errors import ReparamError
from reparam.kernels import packed_reference
from reparam.kernels.opaque import opaque

__all__ = ["MOST_ROWS", "packed_linear"]

#: Above, unpacking once should cost less than unpacking for each 64 rows: an estimate (docs/design.md), never measured.
MOST_ROWS = 256


def _fake_linear(x: Tensor, words: Tensor, scale: Tensor, bias: Tensor | None, in_features: int, bits: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], words.shape[0])


@opaque(_fake_linear)
def packed_linear(x: Tensor, words: Tensor, scale: Tensor, bias: Tensor | None, in_features: int, bits: int) -> Tensor:
    """Returns y (..., O) = x @ W.T + bias, with sums in float32.

    Args:
        x: (..., I) bfloat16.
        words: (O, W) int32, laid out as `packed_reference` says.
        scale: (O,) powers of two.
        bias: (O,).
        in_features: I.
        bits: of a code, 4 or 8.
    Raises:
        ReparamError: an operand has another type or size.
    """
    _want(x, words, scale, in_features, bits)
    rows = x.reshape(-1, in_features)
    return _linear(rows, words, scale, bias, bits).view(*x.shape[:-1], len(words))


def _linear(rows: Tensor, words: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    if rows.device.type != "cuda":
        return packed_reference.linear(rows, words, scale, bias, bits)
    from reparam.kernels import packed_triton  # which not every machine has

    with torch.cuda.device(rows.device):  # Triton launches on the current one
        if len(rows) <= MOST_ROWS:
            return packed_triton.linear(rows, words, scale, bias, bits)
        return F.linear(rows, packed_triton.weight(words, scale, rows.shape[1], bits), bias)


def _want(x: Tensor, words: Tensor, scale: Tensor, in_features: int, bits: int) -> None:
    shape = (len(scale), packed_reference.words_in(in_features, bits)) if bits in packed_reference.UNIT else None
    if x.dtype != torch.bfloat16 or x.shape[-1] != in_features or words.shape != shape or words.dtype != torch.int32:
        raise ReparamError(
            f"wanted x (..., {in_features}) bfloat16 and words {shape} int32 of 4 or 8 bits, got x {tuple(x.shape)} "
            f"{x.dtype} and words {tuple(words.shape)} {words.dtype} of {bits} bits"
        )
