"""Optimal brain quantisation on a grid, column by column: what rounding one weight loses, the later ones make up for.
Then descent, weight by weight: each takes the value of the grid that is best given all others.

With H = X'X, rounding w_i to q_i and giving the best answer in the weights j that are still free costs
(w_i - q_i)^2 / [H_F^-1]_ii and moves them by -(w_i - q_i) / [H_F^-1]_ii * [H_F^-1]_ij. For a fixed order of columns all
these inverses are rows of one matrix, the upper Cholesky factor U of H^-1 = U'U (GPTQ).

Source: Frantar et al., arXiv:2208.11580 (OBQ) and arXiv:2210.17323 (GPTQ).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Share of the mean diagonal that is added to it, as published.
DAMPING = 0.01
#: Columns whose effect on all others is one product.
_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Inverse:
    """A damped Hessian (G, n, n) and its inverse, factored: `factor` is U of H^-1 = U'U; `damping` is what it took."""

    damped: Tensor
    factor: Tensor
    damping: float


def factored_inverse(hessian: Tensor, *, damping: float = DAMPING) -> Inverse:
    """Inverts finite Hessians (G, n, n) after adding `damping` of their mean diagonal, ten times more while singular.

    An input that was never anything but 0 has no row in H: it gets a 1 on the diagonal, and its weights are rounded as
    they are.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    dead = torch.diag_embed((diagonal <= 0).to(hessian.dtype))
    size = diagonal.mean(-1).clamp_min(torch.finfo(hessian.dtype).tiny)
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    while True:
        damped = hessian + dead + damping * size[:, None, None] * eye
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any():
                return Inverse(damped=damped, factor=upper, damping=damping)
        damping *= 10


def feed_back(weight: Tensor, factor: Tensor, quantise: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Rounds weights (G, R, n) column by column and returns values of the grid.

    Args:
        weight: what to approximate; each row for itself.
        factor: (G, n, n) of `factored_inverse`.
        quantise: maps a column (G, R) and its index to values of the grid.
    """
    rest, found = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[-1], _BLOCK):
        end = min(start + _BLOCK, weight.shape[-1])
        block, errors = rest[:, :, start:end], torch.empty_like(rest[:, :, start:end])
        for i in range(start, end):
            column = block[:, :, i - start]
            found[:, :, i] = quantise(column, i)
            error = (column - found[:, :, i]) / factor[:, i, i].unsqueeze(1)
            block -= error.unsqueeze(2) * factor[:, i, start:end].unsqueeze(1)
            errors[:, :, i - start] = error
        rest[:, :, end:] -= errors @ factor[:, start:end, end:]
    return found


def descend(
    start: Tensor, hessian: Tensor, cross: Tensor, quantise: Callable[[Tensor, int], Tensor], *, sweeps: int
) -> Tensor:
    """Improves values of the grid by coordinate descent on tr(Q H Q') - 2 tr(Q C); no step goes up.

    The best real value of one weight, all others given, is q_i + [C' - Q H]_i / H_ii, and the nearest value of the grid
    is the best one, for the error is a parabola around it.

    Args:
        start: (G, R, n) values of the grid.
        hessian: (G, n, n), its diagonal above 0.
        cross: C' (G, R, n).
        quantise: maps a column (G, R) and its index to the nearest values of the grid.
        sweeps: how often all columns are gone through.
    """
    found, slope, diagonal = start.clone(), cross - start @ hessian, hessian.diagonal(dim1=-2, dim2=-1)
    for _ in range(sweeps):
        for first in range(0, start.shape[-1], _BLOCK):
            block = slice(first, min(first + _BLOCK, start.shape[-1]))
            near, before = slope[:, :, block].clone(), found[:, :, block].clone()
            for at, i in enumerate(range(block.start, block.stop)):
                column = found[:, :, i]
                better = quantise(column + near[:, :, at] / diagonal[:, i].unsqueeze(1), i)
                near -= (better - column).unsqueeze(2) * hessian[:, i, block].unsqueeze(1)
                found[:, :, i] = better
            slope -= (found[:, :, block] - before) @ hessian[:, block]
    return found
