"""`reparam.bench`: converted models, lowered and compiled, beside the engines people would pick for the originals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from reparam.api.bench_journal import bench_journal, digest_of, journal_file, settings_of
from reparam.api.bench_records import Bench, BenchCase, growths, was_too_slow
from reparam.api.convert import convert
from reparam.api.lowered_engines import choose_lowered_engines
from reparam.api.measuring import Measuring
from reparam.api.profile import original_of
from reparam.api.recipes import check_recipe
from reparam.api.subject import is_checkpoint, resolve_subject
from reparam.atomic import write_text
from reparam.checkpoint.load import load
from reparam.checkpoint.record import read_record
from reparam.cost.baselines.base import Baseline
from reparam.cost.expert_schedule import routed_shares
from reparam.cost.instructions import instruction_sets
from reparam.cost.latency import machine_name, using_threads
from reparam.cost.measure import measure_batch
from reparam.cost.measurement import Measurement, Side, compare
from reparam.errors import CheckpointError, OptionError, RecipeError
from reparam.graph.records import Plan
from reparam.models.build import build_spec
from reparam.models.sources import split_source
from reparam.models.spec import stamp
from reparam.models.weights import load_weights
from reparam.train.engine import pick_device
from reparam.train.progress import Progress, Silent

#: Forwards that an entry takes at least: two to check it, two for each of three rounds.
_FEWEST_RUNS = 8


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
    out: str | Path | None = None,
    fresh: bool = False,
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
        out: a .json file for the result. Tables are kept beside it until all are done, so that a call that was stopped
            goes on where it stopped.
        fresh: forget those tables.
        progress: hears what is being done.
    Raises:
        OptionError: no model, a size or limit that is not above 0, an unknown engine, or options that a run does not
            take.
        ModelError, RecipeError, PlanError, WeightsError, CheckpointError: as for `convert` and `load`.
    """
    names = [str(model) for model in ([models] if isinstance(models, str | Path) else models)]
    how, forms = Measuring.checked(batch_size, baselines, threads), choose_lowered_engines(lowered)
    sizes = _sizes(img_size)
    where, tell = pick_device(device), (progress or Silent()).message
    _check(names, recipe, sizes, limit, overrides, weights)
    machine = machine_name(where)
    settings = settings_of(how, forms, limit=limit, machine=machine)
    journal = None if out is None else bench_journal(out, fresh=fresh)
    known, cases = {} if journal is None else journal.read(), list[BenchCase]()
    for name in names:
        about = f"{name} {digest_of(name, recipe, weights=weights, overrides=overrides)}"
        for size in [None] if is_checkpoint(name) else sizes:
            pair: _Pair | None = None
            for batch_size in sorted(how.batch_sizes):
                key = f"{about}, {size or 'its own'} pixels, batch {batch_size}, {settings}"
                if key not in known:
                    if pair is None:
                        tell(f"converting {name}{f' at {size} pixels' if size else ''}")
                        pair = _pair(name, recipe, size, weights=weights, overrides=overrides, device=where)
                    known[key] = _case(key, name, pair, batch_size, how, forms, cases, limit=limit, tell=tell)
                    if journal is not None:
                        journal.add(known[key])
                cases.append(known[key])
    found = Bench(
        machine=machine,
        instructions=instruction_sets() if where.type == "cpu" else (),
        threads=how.threads,
        torch=str(torch.__version__),
        cases=tuple(cases),
        growths=tuple(growths(cases)),
    )
    if out is not None:
        write_text(out, found.model_dump_json(indent=1) + "\n")
        journal_file(out).unlink(missing_ok=True)
    return found


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
    weights: str,
) -> None:
    """Tells all that can be told before the first table, which may take minutes."""
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
    for name in names:
        if name not in runs:
            split_source(name)  # a mistyped run wants no recipe
    if len(runs) < len(names) and recipe is None:
        raise RecipeError(f"{next(n for n in names if n not in runs)}: nothing says how to convert it; give --recipe")
    if runs and (recipe is not None or sizes != [None] or overrides or weights != "none"):
        raise OptionError(
            f"{runs[0]} is converted already; recipe, overrides, weights and image sizes are for models by name"
        )
    if recipe is not None:
        check_recipe(recipe, overrides=overrides)
    for name in names:
        if name in runs:
            _original(Path(name))
        else:
            for size in sizes:
                build_spec(name, img_size=size)


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
    plan, original = _original(folder)
    return _Pair(
        recipe=plan.recipe.name,
        converted=load(folder).to(device),
        dense=load(original).to(device),
        shape=plan.input_shape[1:],
    )


def _original(folder: Path) -> tuple[Plan, Path]:
    """The plan of a run and the folder of its original."""
    record, original = read_record(folder), original_of(folder)
    if record.plan is None or original is None:
        raise CheckpointError(f"{folder}: wanted a run, a converted model with its original in the folder dense")
    return record.plan, original


def _case(
    key: str,
    name: str,
    pair: _Pair,
    batch_size: int,
    how: Measuring,
    forms: Sequence[Baseline],
    before: Sequence[BenchCase],
    *,
    limit: float,
    tell: Callable[[str], None],
) -> BenchCase:
    """Measures all engines but those that were too slow in one of the tables `before`."""
    batch, image_size = _batch(pair, batch_size), pair.shape[-1]
    tried: dict[Side, Sequence[Baseline]] = {"converted": forms, "dense": how.baselines}
    slow = {
        (side, engine.name): _left_out(side, engine, batch_size)
        for side, engines in tried.items()
        for engine in engines
        if was_too_slow(before, side, engine.name, model=name, image_size=image_size, batch_size=batch_size)
    }
    entered = {side: [one for one in engines if (side, one.name) not in slow] for side, engines in tried.items()}
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
    with using_threads(how.threads):
        shares = routed_shares(pair.converted, batch)
    return BenchCase(
        name=key,
        model=name,
        recipe=pair.recipe,
        image_size=image_size,
        batch_size=batch_size,
        mult_share=sum(shares.values()) / len(shares) if shares else None,
        measurements=(*found, *slow.values()),
        comparison=compare(found),
    )


def _batch(pair: _Pair, size: int) -> Tensor:
    """Random images, the same in every run, where the model is."""
    images = torch.randn(size, *pair.shape, generator=torch.Generator().manual_seed(0))
    return images.to(next(pair.dense.parameters()).device)


def _left_out(side: Side, engine: Baseline, batch_size: int) -> Measurement:
    return Measurement(
        side=side,
        engine=engine.name,
        title=engine.title,
        batch_size=batch_size,
        status="skipped",
        reason="it was too slow at a smaller size already",
    )
