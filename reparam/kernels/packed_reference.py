"""Linear layers on packed powers of two in plain torch: what `packed_triton` computes, and how the words are laid out.

A code has 4 or 8 bits, a sign above an exponent code e, of which 0 is the weight 0:

    w[o, i] = (-1)**sign * 2**(e - UNIT[bits]) * scale[o],    scale[o] a power of two

A 32-bit word holds C = 8 or 4 codes, the first in its lowest bits. Code c of word w is that of input
8 * C * (w // 8) + 8 * c + w % 8: the codes at one place of 8 words in a row are those of 8 inputs in a row. The words
of an output follow each other and are a multiple of 8; what is beyond the last input has code 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

#: Words in a row whose codes stand for inputs in a row.
RUN = 8
#: Exponent code of 2**0 before scaling: the largest of 4 bits, the middle of 8, so that no product leaves float32.
UNIT = {4: 7, 8: 64}


def words_in(inputs: int, bits: int) -> int:
    """Words of one output."""
    return -(-inputs // (RUN * 32 // bits)) * RUN


def weight(words: Tensor, scale: Tensor, inputs: int, bits: int) -> Tensor:
    """Returns the weight (O, I) in bfloat16, in which it is exact, of words (O, W) int32 and scale (O,) float32."""
    places = torch.arange(0, 32, bits, device=words.device)
    codes = words.unsqueeze(-1) >> places & ((1 << bits) - 1)
    codes = codes.unflatten(1, (-1, RUN)).transpose(-1, -2).flatten(1)[:, :inputs]
    exponent = codes & ((1 << (bits - 1)) - 1)
    sign = 1.0 - 2.0 * (codes >> (bits - 1))
    power = torch.ldexp(sign * (exponent != 0), exponent - UNIT[bits])
    return (power * scale[:, None]).to(torch.bfloat16)


def linear(x: Tensor, words: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """Returns y (M, O) bfloat16 of x (M, I) bfloat16: sums in float32, rounded once."""
    rounded = weight(words, scale, x.shape[1], bits).float()
    return F.linear(x.float(), rounded, None if bias is None else bias.float()).to(x.dtype)
