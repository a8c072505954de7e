"""The integer program against all subsets."""

import ctypes
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam.errors import BudgetError
from reparam.tradeoff.program import Bound, check_solver, solve, without_solver_notes

#: As divergences and drops are: many orders of magnitude.
FIGURES = st.one_of(st.just(0.0), st.floats(1e-5, 10, allow_subnormal=False))
SIZE = 7


def allowed(taken: Sequence[int], bounds: Sequence[Bound], groups: Sequence[Sequence[int]]) -> bool:
    fits = all(sum(bound.weights[i] for i in taken) <= bound.limit for bound in bounds)
    return fits and all(len(set(taken) & set(group)) <= 1 for group in groups)


def best(objective: Sequence[float], bounds: Sequence[Bound], groups: Sequence[Sequence[int]]) -> float | None:
    subsets = (s for n in range(len(objective) + 1) for s in itertools.combinations(range(len(objective)), n))
    return min((sum(objective[i] for i in s) for s in subsets if allowed(s, bounds, groups)), default=None)


@given(
    losses=st.lists(FIGURES, min_size=SIZE, max_size=SIZE),
    savings=st.lists(st.integers(-1000, 100), min_size=SIZE, max_size=SIZE),
    drops=st.lists(st.integers(0, 50), min_size=SIZE, max_size=SIZE),
    limit=st.integers(-4000, 100),
    most=st.integers(0, 200),
    groups=st.lists(st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=3, unique=True), max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_the_solution_is_the_best_of_all_subsets(
    losses: list[float], savings: list[int], drops: list[int], limit: int, most: int, groups: list[list[int]]
) -> None:
    bounds = [Bound(weights=savings, limit=limit), Bound(weights=drops, limit=most)]
    taken = solve(losses, bounds, groups)
    wanted = best(losses, bounds, groups)
    if wanted is None:
        assert taken is None
        return
    assert taken is not None
    assert allowed(taken, bounds, groups)
    assert sum(losses[i] for i in taken) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_gains_are_taken_where_nothing_forbids() -> None:
    assert solve([-1.0, 2.0, -3.0], [], []) == (0, 2)
    assert solve([-1.0, 2.0, -3.0], [], [[0, 2]]) == (2,)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_solver()
    found: Any = sys.modules["importlib.util"]
    monkeypatch.setattr(found, "find_spec", lambda name: None)
    with pytest.raises(BudgetError, match=r"pip install \"reparam\[search\]\""):
        check_solver()


@pytest.mark.skipif(sys.platform == "win32", reason="C libraries are found otherwise there")
def test_what_the_solver_prints_stays_off_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with without_solver_notes():
        ctypes.CDLL(None).puts(b"a note of the solver")
    print("a result")
    out, err = capfd.readouterr()
    assert (out, err) == ("a result\n", "")
