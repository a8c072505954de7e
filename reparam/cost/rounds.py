"""Times several runs in turns, so that a slow minute of the machine, or a clock that drifts, slows all of them alike.

In every round torch's own timer gives each run a block of time, after it has run at least once untimed: what one run
leaves in the caches, and threads that another engine lets spin for a while, are not timed with the next.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, TypeVar

from reparam.cost.latency import hush_toolkit_search

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

K = TypeVar("K")
#: A median and its quartiles want at least as many rounds, however slow a run is.
_FEWEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Milliseconds of one run: its mean in each round. `runs` counts the timed runs of all rounds."""

    means_ms: tuple[float, ...]
    runs: int

    @property
    def median_ms(self) -> float:
        """The median over the rounds."""
        return median(self.means_ms)

    @property
    def iqr_ms(self) -> float:
        """The interquartile range over the rounds."""
        low, _, high = quantiles(self.means_ms, n=4, method="inclusive")
        return high - low


def time_in_turns(
    runs: Mapping[K, Callable[[], object]], *, threads: int, seconds: float, rounds: int = 9
) -> dict[K, Rounds]:
    """Times each run in every round, in the order given.

    Args:
        runs: what to time, by name.
        threads: of torch.
        seconds: to spend on each run, spread over the rounds. Where single runs are slow it has fewer rounds, at least
            3, so that it takes no more than twice as long, unless 6 runs do.
        rounds: how many.
    """
    timers = {key: timer_class()("run()", globals={"run": run}, num_threads=threads) for key, run in runs.items()}
    block = seconds / rounds
    means: dict[K, list[float]] = {key: [] for key in timers}
    counts, wanted = dict.fromkeys(timers, 0), dict.fromkeys(timers, rounds)
    for number in range(rounds):
        for key in [key for key in timers if number < wanted[key]]:
            block_times = timers[key].blocked_autorange(min_run_time=block)
            means[key].append(block_times.mean * 1e3)
            counts[key] += len(block_times.times) * block_times.number_per_run
            if number == 0:
                round_seconds = block_times.mean + max(block, block_times.mean)
                wanted[key] = max(_FEWEST, min(rounds, int(2 * seconds / round_seconds)))
    return {key: Rounds(means_ms=tuple(means[key]), runs=counts[key]) for key in timers}


def timer_class() -> "type[Timer]":
    """torch's timer of small programs, which synchronises devices and fixes the number of threads."""
    hush_toolkit_search()  # importing the timer begins it
    from torch.utils.benchmark import Timer

    return Timer
