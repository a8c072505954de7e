"""`reparam.bench`: converted models, lowered and compiled, beside the engines people would pick for the originals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from reparam.api.convert import convert
from reparam.api.lowered_engines import choose_lowered_engines
from reparam.api.measuring import Measuring
from reparam.api.profile import original_of
from reparam.api.subject import is_checkpoint, resolve_subject
from reparam.checkpoint.load import load
from reparam.checkpoint.record import read_record
from reparam.cost.baselines.base import Baseline
from reparam.cost.expert_schedule import routed_shares
from reparam.cost.growth import fitted_exponent
from reparam.cost.instructions import instruction_sets
from reparam.cost.latency import machine_name, using_threads
from reparam.cost.measure import measure_batch
from reparam.cost.measurement import Comparison, Measurement, Side, compare
from reparam.errors import CheckpointError, OptionError, RecipeError
from reparam.models.spec import stamp
from reparam.models.weights import load_weights
from reparam.recipe.schema import Frozen
from reparam.train.engine import pick_device
from reparam.train.progress import Progress, Silent

#: Forwards that an entry takes at least: two to check it, two for each of three rounds.
_FEWEST_RUNS = 8


class BenchCase(Frozen):
    """One model at one size of images and one batch size: all of its engines, timed in turns in one run.

    `mult_share` is the mean share of tokens that the routers of mixtures multiplied, None without mixtures.
    """

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A converted model and its dense original, and one image's shape (channels, height, width)."""

    recipe: str
    converted: nn.Module
    dense: nn.Module
    shape: tuple[int, ...]


def bench(
    models: str | Path | Sequence[str | Path],
    recipe: str | Path | None = None,
    *,
    img_size: int | Sequence[int] | None = None,
    batch_size: int | Sequence[int] = 1,
    baselines: str | Sequence[str] = "all",
    lowered: str | Sequence[str] = "all",
    threads: int | None = None,
    device: str | None = None,
    weights: str = "none",
    overrides: Sequence[str] = (),
    limit: float = 60.0,
    progress: Progress | None = None,
) -> Bench:
    """Times converted models and their originals in every engine, in turns, on random images.

    Args:
        models: names, which are converted for each size of images, or runs.
        recipe: of named models.
        img_size: sides of the square images of named models; by default each model's own.
        batch_size: images per forward.
        baselines: ways to run the originals, as `reparam.profile` takes them.
        lowered: ways to run the converted models beside the eager one: "all", "none", or names such as "int8+compiled",
            as a sequence or with commas between them.
        threads: of the CPU; torch's own number when None.
        device: such as "cpu" or "cuda:1"; CUDA where there is one when None.
        weights: of named models; "none" for random ones, with which every untrained router multiplies all tokens.
        overrides: changes of the recipe.
        limit: seconds for one entry of a table. One that would take longer is left out, at larger sizes too.
        progress: hears what is being done.
    Raises:
        OptionError: no model, a size or limit that is not above 0, an unknown engine, or options that a run does not
            take.
        ModelError, RecipeError, PlanError, WeightsError, CheckpointError: as for `convert` and `load`.
    """
    names = [str(model) for model in ([models] if isinstance(models, str | Path) else models)]
    how, forms = Measuring.checked(batch_size, baselines, threads), choose_lowered_engines(lowered)
    sizes = _sizes(img_size)
    _check(names, recipe, sizes, limit, overrides)
    where, tell = pick_device(device), (progress or Silent()).message
    cases: list[BenchCase] = []
    for name in names:
        slow: set[tuple[Side, str]] = set()
        for size in [None] if is_checkpoint(name) else sizes:
            tell(f"converting {name}{f' at {size} pixels' if size else ''}")
            pair = _pair(name, recipe, size, weights=weights, overrides=overrides, device=where)
            for batch in _batches(pair.shape, how.batch_sizes, device=where):
                cases.append(_case(name, pair, batch, how, forms, limit=limit, slow=slow, tell=tell))
    return Bench(
        machine=machine_name(where),
        instructions=instruction_sets() if where.type == "cpu" else (),
        threads=how.threads,
        torch=str(torch.__version__),
        cases=tuple(cases),
        growths=tuple(_growths(cases)),
    )


def _sizes(img_size: int | Sequence[int] | None) -> list[int | None]:
    if img_size is None:
        return [None]
    return [*sorted({img_size} if isinstance(img_size, int) else set(img_size))]


def _check(
    names: Sequence[str],
    recipe: str | Path | None,
    sizes: Sequence[int | None],
    limit: float,
    overrides: Sequence[str],
) -> None:
    if not names:
        raise OptionError("no model to measure; name one, or the folder of a run")
    for size in sizes:
        if size is not None and size < 1:
            raise OptionError(f"image size {size}: wanted 1 or more")
    if not sizes:
        raise OptionError("no image size to measure; name one, such as 224")
    if not limit > 0:
        raise OptionError(f"limit {limit:g}: wanted more than 0 seconds")
    runs = [name for name in names if is_checkpoint(name)]
    if len(runs) < len(names) and recipe is None:
        raise RecipeError(f"{next(n for n in names if n not in runs)}: nothing says how to convert it; give --recipe")
    if runs and (recipe is not None or sizes != [None] or overrides):
        raise OptionError(f"{runs[0]} is converted already; recipe, overrides and image sizes are for models by name")


def _pair(
    name: str,
    recipe: str | Path | None,
    size: int | None,
    *,
    weights: str,
    overrides: Sequence[str],
    device: torch.device,
) -> _Pair:
    if is_checkpoint(name):
        return _pair_of_run(Path(name), device=device)
    assert recipe is not None
    torch.manual_seed(0)
    subject = resolve_subject(name, img_size=size)
    load_weights(subject.model, subject.spec, weights)
    stamp(subject.model, subject.spec)
    converted = convert(
        subject.model, recipe, example_input=subject.example_input, overrides=overrides, allow_partial=True
    )
    shape = converted.plan.input_shape[1:]
    return _Pair(
        recipe=converted.plan.recipe.name,
        converted=converted.model.to(device),
        dense=subject.model.to(device),
        shape=shape,
    )


def _pair_of_run(folder: Path, *, device: torch.device) -> _Pair:
    record, original = read_record(folder), original_of(folder)
    if record.plan is None or original is None:
        raise CheckpointError(f"{folder}: wanted a run, a converted model with its original in the folder dense")
    return _Pair(
        recipe=record.plan.recipe.name,
        converted=load(folder).to(device),
        dense=load(original).to(device),
        shape=record.plan.input_shape[1:],
    )


def _batches(shape: tuple[int, ...], sizes: Sequence[int], *, device: torch.device) -> Iterator[Tensor]:
    """Random images, the same in every run, the smallest batch first."""
    for size in sorted(sizes):
        yield torch.randn(size, *shape, generator=torch.Generator().manual_seed(0)).to(device)


def _case(
    name: str,
    pair: _Pair,
    batch: Tensor,
    how: Measuring,
    forms: Sequence[Baseline],
    *,
    limit: float,
    slow: set[tuple[Side, str]],
    tell: Callable[[str], None],
) -> BenchCase:
    """Measures all engines that were not too slow at smaller sizes; notes in `slow` those that are at this one."""
    tried: dict[Side, Sequence[Baseline]] = {"converted": forms, "dense": how.baselines}
    entered = {
        side: [engine for engine in engines if (side, engine.name) not in slow] for side, engines in tried.items()
    }
    found = measure_batch(
        batch,
        converted=pair.converted,
        forms=entered["converted"],
        dense=pair.dense,
        baselines=entered["dense"],
        threads=how.threads,
        tell=tell,
        slowest_s=limit / _FEWEST_RUNS,
    )
    left_out = [
        _left_out(side, engine, len(batch))
        for side, engines in tried.items()
        for engine in engines
        if (side, engine.name) in slow
    ]
    slow |= {(m.side, m.engine) for m in found if m.status == "skipped" and m.error is not None}
    with using_threads(how.threads):
        shares = routed_shares(pair.converted, batch)
    return BenchCase(
        model=name,
        recipe=pair.recipe,
        image_size=batch.shape[-1],
        batch_size=len(batch),
        mult_share=sum(shares.values()) / len(shares) if shares else None,
        measurements=(*found, *left_out),
        comparison=compare(found),
    )


def _left_out(side: Side, engine: Baseline, batch_size: int) -> Measurement:
    return Measurement(
        side=side,
        engine=engine.name,
        title=engine.title,
        batch_size=batch_size,
        status="skipped",
        reason="it was too slow at a smaller size already",
    )


def _growths(cases: Sequence[BenchCase]) -> Iterator[Growth]:
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
