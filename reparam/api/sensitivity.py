"""`reparam.sensitivity`: what each site loses when it alone is converted; a JSON file, its journal, and a picture."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reparam.api.command import command_line
from reparam.api.dense_source import DenseSource, Recipes, as_sequence, open_dense
from reparam.api.subject import PROBE_BATCH
from reparam.atomic import check_file, write_text
from reparam.errors import CheckpointError
from reparam.models.weights import weights_digest
from reparam.recipe.data_settings import DataSettings
from reparam.reporting.figure import NO_MATPLOTLIB, can_draw
from reparam.reporting.sensitivity import draw_sensitivity
from reparam.trace.probe import probe
from reparam.trace.record import Trace
from reparam.tradeoff.choices import Choice, find_choices
from reparam.tradeoff.cuts import find_cuts
from reparam.tradeoff.evaluations import Evaluations
from reparam.tradeoff.journal import SensitivityJournal
from reparam.tradeoff.measure import Dense, count, figures, in_order, measure, place
from reparam.tradeoff.records import Sensitivity, SensitivityStep, Subject, read_sensitivity
from reparam.train.data import make_eval_loader
from reparam.train.engine import pick_device
from reparam.train.regime import count_outputs

SENSITIVITY_NAME = "sensitivity.json"
IMAGES, BATCH_SIZE, WORKERS, PREFIX_MEMORY_GB = 1000, 128, 2, 2.0
_GIGABYTE = 10**9

Progress = Callable[[SensitivityStep], None]
logger = logging.getLogger(__name__)


def _silent(step: SensitivityStep) -> None:
    pass


def sensitivity(
    source: str | Path,
    recipe: Recipes | None = None,
    *,
    data: DataSettings,
    images: int = IMAGES,
    batch_size: int = BATCH_SIZE,
    workers: int = WORKERS,
    device: str | None = None,
    prefix_memory_gb: float = PREFIX_MEMORY_GB,
    overrides: Sequence[str] = (),
    allow_partial: bool = False,
    weights: str = "hub",
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    base: nn.Module | Callable[[], nn.Module] | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress = _silent,
) -> Sensitivity:
    """Converts one site at a time, without training, and measures what that does to the answers.

    Each finished choice is a line of a journal beside the result, so a call that was stopped goes on where it stopped.

    Args:
        source: a run, whose dense original and recipe are taken; a dense checkpoint folder; or a model by name.
        recipe: one or several; each operator that any of them has for a site is a choice of its own.
        data: which images.
        images: at most so many of the evaluation split, evenly spaced over it; the first ones of a stream.
        batch_size: images at a time.
        workers: loader processes.
        device: such as "cpu" or "cuda:1"; CUDA where there is one when None.
        prefix_memory_gb: for the input of one module, kept for all images (GB, 10**9 bytes); 0 runs whole networks.
        overrides: changes of the recipe, where there is one.
        allow_partial: leave refused sites out instead of raising.
        weights: of a named model, as for `convert`.
        num_classes: classes of a named model.
        img_size: side of its square images, in pixels.
        in_chans: channels of its images.
        model_kwargs: further arguments of its builder.
        base: the dense model of a checkpoint that only its owner can build.
        out: the .json file; by default `sensitivity.json` in the folder of the run or checkpoint, or else here.
        fresh: forget the journal.
        progress: called before the work, and after each choice.
    Raises:
        ModelError, WeightsError, CheckpointError: the model cannot be had; or the files are of something else.
        RecipeError, PlanError: as for `plan`, or nothing to convert.
        DataError: the data cannot be read, or does not fit the model.
    """
    shape = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "model_kwargs": model_kwargs}
    dense = open_dense(
        source,
        recipe,
        data=data,
        overrides=overrides,
        allow_partial=allow_partial,
        weights=weights,
        shape=shape,
        base=base,
    )
    target = Path(out) if out is not None else dense.folder / SENSITIVITY_NAME
    _check_target(target)
    subject = Subject(
        model=dense.name,
        weights=weights_digest(dense.model.state_dict())[:16],
        recipes=dense.recipes,
        data={name: value for name, value in asdict(data).items() if value != getattr(DataSettings(), name)},
        images=images,
    ).as_read()
    journal = SensitivityJournal(target.with_suffix(".jsonl"), subject, fresh=fresh)
    progress(SensitivityStep(what="planning"))
    found = find_choices(dense.model, dense.recipes, _example(dense), allow_partial=dense.allow_partial)
    where = pick_device(device)
    pending = [choice for choice in found.choices if choice.key not in journal.known]
    if pending or journal.dense is None:
        outputs = count_outputs(dense.model, dense.image.input_size, device=torch.device("cpu"))
        loader, _ = make_eval_loader(
            data,
            image=dense.image,
            num_classes=outputs,
            batch_size=batch_size,
            workers=workers,
            device=where,
            spread=images,
        )
        # Only now, when the data are there: a journal of a mistyped folder would stand in the way of the right one.
        journal.begin()
        on_device = dense.model if where.type == "cpu" else copy.deepcopy(dense.model).to(where)
        trace = probe(dense.model, _example(dense))
        evaluations = Evaluations(
            on_device,
            loader,
            limit=images,
            cuts=find_cuts(trace),
            memory=prefix_memory_gb * _GIGABYTE,
            device=where,
        )
        _measure(dense, trace, pending, evaluations, journal, progress, total=len(found.choices))
    assert journal.dense is not None
    command = command_line(
        "sensitivity",
        source,
        options={
            "recipe": [str(one) if isinstance(one, str | Path) else one.name for one in as_sequence(recipe)],
            "set": overrides,
            "weights": None if weights == "hub" else weights,
            "num-classes": num_classes,
            "img-size": img_size,
            "in-chans": in_chans,
            "model-kwargs": [f"{key}={value}" for key, value in (model_kwargs or {}).items()],
            "allow-partial": allow_partial,
            "images": None if images == IMAGES else images,
            "out": out,
        },
        data=data,
    )
    result = Sensitivity(
        subject=subject,
        dense_top1=journal.dense.top1,
        images=journal.dense.images,
        dense=journal.dense,
        sites=tuple(sorted((journal.known[c.key] for c in found.choices), key=lambda site: (-site.kl, site.path))),
        other_sites=found.others,
        device=str(where),
        commands=(command,),
    )
    write_text(target, result.model_dump_json(indent=1) + "\n")
    if can_draw():
        draw_sensitivity(result, target.with_suffix(""))
    else:
        logger.info(NO_MATPLOTLIB)
    return result


def _example(dense: DenseSource) -> torch.Tensor:
    return torch.empty(PROBE_BATCH, *dense.image.input_size, device="meta")


def _measure(
    dense: DenseSource,
    trace: Trace,
    pending: Sequence[Choice],
    evaluations: Evaluations,
    journal: SensitivityJournal,
    progress: Progress,
    *,
    total: int,
) -> None:
    """Evaluates the dense model and the choices that the journal lacks, each of which becomes a line of it."""
    choices = in_order(pending, trace)
    cuts = place(choices, trace, evaluations)
    done = total - len(choices)
    progress(SensitivityStep(what="evaluating the dense model", done=done, total=total))
    answers = evaluations.dense_answers(cuts[choices[0].key] if choices else None)
    whole = Dense(
        model=dense.model,
        example_input=_example(dense),
        counts=count(dense.model, trace),
        answers=answers,
    )
    journal.add_dense(figures(whole))
    progress(SensitivityStep(what="measured", done=done, total=total))
    for choice, site in zip(choices, measure(whole, choices, evaluations, cuts), strict=True):
        journal.add(choice.key, site)
        done += 1
        progress(SensitivityStep(what="measured", done=done, total=total, site=site))


def _check_target(target: Path) -> None:
    """Raises CheckpointError for a name that cannot be written, or that something else has which would be lost."""
    if target.suffix != ".json":
        raise CheckpointError(f"{target}: the result is a JSON file; give a name that ends in .json")
    check_file(target)
    if target.exists():
        read_sensitivity(target)
