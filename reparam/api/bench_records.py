"""Records of a benchmark: a table for each model, size of images and batch, and what several tables say together."""

from collections.abc import Iterator, Sequence

from reparam.cost.growth import fitted_exponent
from reparam.cost.measurement import Comparison, Measurement, Side
from reparam.recipe.schema import Frozen


class BenchCase(Frozen):
    """One model at one size of images and one batch size: all of its engines, timed in turns in one run.

    `name` says all that was asked for, and where, so that a journal knows whether it is done. `mult_share` is the mean
    share of tokens that the routers of mixtures multiplied, None without mixtures.
    """

    name: str
    model: str
    recipe: str
    image_size: int
    batch_size: int
    mult_share: float | None
    measurements: tuple[Measurement, ...]
    comparison: Comparison | None


class Growth(Frozen):
    """How one engine's latency grows: time = c * tokens**exponent, fitted over these sizes of images."""

    model: str
    batch_size: int
    side: Side
    title: str
    image_sizes: tuple[int, ...]
    exponent: float


class Bench(Frozen):
    """All that was measured in one run on one machine. `instructions` are the CPU's, or empty for another device."""

    machine: str
    instructions: tuple[str, ...]
    threads: int
    torch: str
    cases: tuple[BenchCase, ...]
    growths: tuple[Growth, ...]


def was_too_slow(
    cases: Sequence[BenchCase], side: Side, engine: str, *, model: str, image_size: int, batch_size: int
) -> bool:
    """Whether an engine was not waited for with images and batches that were no larger."""
    return any(
        (m.side, m.engine, m.status) == (side, engine, "skipped") and m.error is not None
        for case in cases
        if case.model == model and case.image_size <= image_size and case.batch_size <= batch_size
        for m in case.measurements
    )


def growths(cases: Sequence[BenchCase]) -> Iterator[Growth]:
    """The exponent of each engine that was timed with images of several sizes."""
    timed: dict[tuple[str, int, Side, str], dict[int, float]] = {}
    for case in cases:
        for m in case.measurements:
            if m.latency is not None:
                times = timed.setdefault((case.model, case.batch_size, m.side, m.title), {})
                times[case.image_size] = m.latency.median_ms
    for (model, batch_size, side, title), times in timed.items():
        # Tokens are patches of one size, so they grow as the pixels do.
        exponent = fitted_exponent({size**2: time for size, time in times.items()})
        if exponent is not None:
            yield Growth(
                model=model,
                batch_size=batch_size,
                side=side,
                title=title,
                image_sizes=tuple(times),
                exponent=exponent,
            )
