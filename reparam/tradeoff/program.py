"""The integer program: which choices to take so that a sum is least, other sums stay under bounds, and none exclude
each other.

    min  sum_i c_i x_i    s.t.  sum_i a_ki x_i <= b_k  for every bound k,   sum_{i in G} x_i <= 1  for every group G,
    x_i in {0, 1}

Solved exactly by scipy's `milp` (HiGHS), an extra.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from reparam.errors import BudgetError

Numbers = Sequence[float]
#: HiGHS is exact to 1e-6: sums are scaled so that this is far below any difference that matters.
_SCALE = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """sum of `weights` over the choices taken <= `limit`."""

    weights: Numbers
    limit: float


def check_solver() -> None:
    """Raises BudgetError where scipy is not installed."""
    if importlib.util.find_spec("scipy") is None:
        raise BudgetError('the search is solved by scipy, which is not installed: pip install "reparam[search]"')


def solve(objective: Numbers, bounds: Sequence[Bound], groups: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
    """Returns the choices to take, in ascending order, or None when no set of them keeps to the bounds.

    Args:
        objective: what each choice adds to the sum that is to be least.
        bounds: each with a weight for every choice.
        groups: sets of choices of which at most one may be taken.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # the optional "search" extra

    size = len(objective)
    rows = [_scaled(bound.weights, bound.limit) for bound in bounds]
    for group in groups:
        rows.append((np.bincount(group, minlength=size).astype(float), 1.0))
    constraints = [LinearConstraint(weights[None], -np.inf, limit) for weights, limit in rows]
    costs, _ = _scaled(objective, 0.0)
    with without_solver_notes():
        answer = milp(costs, constraints=constraints, integrality=1, bounds=Bounds(0, 1), options={"mip_rel_gap": 0.0})
    if answer.x is None:
        return None
    return tuple(int(index) for index in np.flatnonzero(answer.x > 0.5))


@contextmanager
def without_solver_notes() -> Iterator[None]:
    """Inside, what C code prints to stdout is dropped: HiGHS prints notes of its own, and stdout is for results."""
    if os.name != "posix":
        yield
        return
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # into a pipe, C keeps its lines back
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _scaled(weights: Numbers, limit: float) -> tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", float]:
    values = np.asarray(weights, dtype=np.float64)
    factor = _SCALE / (np.abs(values).max(initial=0.0) or 1.0)
    return values * factor, limit * factor
