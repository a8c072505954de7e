"""Rounds against a timer that tells what it was asked and answers what the test says."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reparam.cost import rounds
from reparam.cost.rounds import Rounds, time_in_turns, timer_class

Asked = list[tuple[str, float]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Which run was timed for how long, in order. One run takes the seconds that it returns; nothing waits."""
    asked: Asked = []

    class Timer:
        def __init__(self, stmt: str, *, globals: dict[str, Any], num_threads: int) -> None:
            assert (stmt, num_threads) == ("run()", 3)
            self.name, self.seconds = globals["run"]()

        def blocked_autorange(self, *, min_run_time: float) -> SimpleNamespace:
            asked.append((self.name, min_run_time))
            runs = max(1, round(min_run_time / self.seconds))
            return SimpleNamespace(mean=self.seconds, times=[self.seconds] * runs, number_per_run=1)

    monkeypatch.setattr(rounds, "timer_class", lambda: Timer)
    return asked


def taking(**seconds: float) -> dict[str, Callable[[], object]]:
    return {name: lambda name=name, took=took: (name, took) for name, took in seconds.items()}


def test_every_round_times_each_run_once_in_the_order_given(asked: Asked) -> None:
    time_in_turns(taking(b=0.1, a=0.1, c=0.1), threads=3, seconds=2.0, rounds=5)
    assert asked == [("b", 0.4), ("a", 0.4), ("c", 0.4)] * 5


def test_blocks_of_fast_and_slow_runs_last_equally_long(asked: Asked) -> None:
    found = time_in_turns(taking(slow=0.1, fast=0.01), threads=3, seconds=2.0, rounds=4)
    assert {name: figures.runs for name, figures in found.items()} == {"slow": 20, "fast": 200}
    assert found["fast"].means_ms == pytest.approx([10.0] * 4)


def test_a_run_that_is_too_slow_has_three_rounds_and_costs_the_others_none(asked: Asked) -> None:
    found = time_in_turns(taking(slow=60.0, slowish=0.5, fast=0.01), threads=3, seconds=2.0, rounds=8)
    assert {name: len(figures.means_ms) for name, figures in found.items()} == {"slow": 3, "slowish": 4, "fast": 8}
    assert found["slow"].runs == 3
    assert [name for name, _ in asked[:6]] == ["slow", "slowish", "fast"] * 2


def test_median_and_spread_are_those_of_the_rounds() -> None:
    figures = Rounds(means_ms=(5.0, 1.0, 2.0, 4.0, 3.0), runs=5)
    assert (figures.median_ms, figures.iqr_ms) == (3.0, 2.0)


def test_torch_times_what_really_runs_with_the_threads_asked_for() -> None:
    threads: set[int] = set()
    found = time_in_turns({"run": lambda: threads.add(torch.get_num_threads())}, threads=2, seconds=1e-6, rounds=3)
    assert threads == {2}
    assert found["run"].median_ms > 0
    assert timer_class().__module__.startswith("torch.utils.benchmark")
