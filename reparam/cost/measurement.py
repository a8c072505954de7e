"""Records of what was measured here: a model, the ways to run its dense original, and how they compare."""

from collections.abc import Sequence
from typing import Literal

from reparam.cost.energy_meter import MeasuredEnergy
from reparam.cost.expert_schedule import ExpertSchedule
from reparam.cost.latency import Latency
from reparam.recipe.schema import Frozen

Side = Literal["converted", "dense"]
Status = Literal["measured", "skipped", "failed", "wrong"]


class Measurement(Frozen):
    """One model in one engine at one batch size: its figures, or why there are none.

    `engine` is the name of a baseline and `title` says it in words. `status` is "skipped" where it cannot be tried
    here, "failed" where it broke, "wrong" where its outputs differ from the eager original's by more than `tolerance`;
    `reason` has the words. `error` is that difference, relative (None for what runs eagerly in float32 itself).
    `peak_bytes` is the peak memory of one forward, of engines that allocate with torch. `energy` is None unless the
    machine counts it.
    """

    side: Side
    engine: str
    title: str
    batch_size: int
    status: Status
    reason: str | None = None
    latency: Latency | None = None
    images_per_second: float | None = None
    tolerance: float | None = None
    error: float | None = None
    peak_bytes: int | None = None
    energy: MeasuredEnergy | None = None


class Comparison(Frozen):
    """A converted model and the fastest baseline of its dense original; `ratio` above 1 says how much slower it is.

    `engine` and `title` are the dense one's; `converted_title` says how the converted model ran, the fastest way.
    `spread` is the larger of both interquartile ranges, relative to its median: the ratio is no more certain than that.
    """

    batch_size: int
    engine: str
    title: str
    dense_ms: float
    converted_ms: float
    converted_title: str = "eager, fp32"
    ratio: float
    spread: float


class Measured(Frozen):
    """All that was measured in one run on one machine; every batch size in rounds of its own.

    `machine` is the processor's or the GPU's name, `torch` a version. `comparisons` has one entry for each batch size
    at which both a converted model and a dense one were timed. `schedules` model the experts of mixtures in parallel.
    `no_energy` says why no energy was measured.
    """

    machine: str
    threads: int
    torch: str
    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...]
    schedules: tuple[ExpertSchedule, ...]
    no_energy: str | None


def compare(measurements: Sequence[Measurement]) -> Comparison | None:
    """The converted model at its fastest against the fastest dense baseline; None unless both were timed."""
    timed = [(m, m.latency) for m in measurements if m.latency is not None]
    dense, ours = ([pair for pair in timed if pair[0].side == side] for side in ("dense", "converted"))
    if not dense or not ours:
        return None
    best, fastest = min(dense, key=lambda pair: pair[1].median_ms)
    ours_best, converted = min(ours, key=lambda pair: pair[1].median_ms)
    return Comparison(
        batch_size=best.batch_size,
        engine=best.engine,
        title=best.title,
        dense_ms=fastest.median_ms,
        converted_ms=converted.median_ms,
        converted_title=ours_best.title,
        ratio=converted.median_ms / fastest.median_ms,
        spread=max(latency.iqr_ms / latency.median_ms for latency in (fastest, converted)),
    )
