"""Interleaved timing: every round runs each side once, so that a slow minute of the machine hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of one side over all rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:8.2f} ms  (quartiles {self.low:.2f} to {self.high:.2f})"


def interleave(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times each side `rounds` times in turn, after `warmup` untimed rounds.

    With `time.thread_time` as the clock, what other processes take of a busy core does not count; for one thread only.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        for name, run in sides.items():
            start = clock()
            run()
            if number >= warmup:
                seconds[name].append(clock() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    low, median, high = statistics.quantiles((1e3 * s for s in seconds), n=4)
    return Timing(median=median, low=low, high=high)


def print_ratios(title: str, timings: Mapping[str, Timing], *, baseline: str) -> None:
    """Prints each side and its ratio to the baseline."""
    print(title)
    for name, timing in timings.items():
        print(f"  {name:<44}{timing}  {timing.median / timings[baseline].median:5.2f}x {baseline}")
