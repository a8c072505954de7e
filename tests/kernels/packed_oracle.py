"""Packed weights one code at a time, in Python's own integers, and exact products."""

import torch
from torch import Tensor


def value(code: int, bits: int) -> float:
    """(-1)**sign * 2**(e - unit), and 0 for e = 0; the unit is 7 with 4 bits and 64 with 8."""
    sign, exponent = divmod(code, 1 << (bits - 1))
    return 0.0 if exponent == 0 else (-1.0) ** sign * 2.0 ** (exponent - {4: 7, 8: 64}[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Words (O, W) int32 of codes (O, I): those of 8 inputs in a row stand at one place of 8 words in a row."""
    per_word = 32 // bits
    rows = []
    for row in codes.tolist():
        words = [0] * (8 * -(-len(row) // (8 * per_word)))
        for i, code in enumerate(row):
            run, place = divmod(i, 8 * per_word)
            words[8 * run + place % 8] |= code << bits * (place // 8)
        rows.append([word - (word >> 31 << 32) for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def operands(bits: int, rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x (M, I) bfloat16, words, scale, bias (O,), and the weight (O, I) float64; every code is met in large ones.

    Exponents of 8 bits are drawn from the 16 above 56, so that one power does not hide all others.
    """
    torch.manual_seed(rows + inputs + outputs)
    codes = torch.randint(0, 16, (outputs, inputs))
    if bits == 8:
        is_used = torch.rand(outputs, inputs) < 0.9
        codes = is_used * (torch.randint(56, 72, (outputs, inputs)) + 128 * (codes >> 3))
    scale = torch.exp2(torch.randint(-30, 30, (outputs,)).float())
    exact = torch.tensor([[value(code, bits) for code in row] for row in codes.tolist()], dtype=torch.float64)
    x = torch.randn(rows, inputs).to(torch.bfloat16)
    return x, pack(codes, bits), scale, torch.randn(outputs), exact * scale[:, None].double()


def wanted(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The product in float64, and the sum of the magnitudes of its terms, which bounds any rounding of sums."""
    added = torch.zeros(len(weight)).double() if bias is None else bias.double()
    return x.double() @ weight.T + added, x.double().abs() @ weight.abs().T + added.abs()
