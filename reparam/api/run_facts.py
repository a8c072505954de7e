"""What a report tells of one run: read from its folder, from its model, and from a few images."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from reparam.api.evaluate import format_of, read_evaluation
from reparam.api.profile import PROFILE_NAME, Profile, original_of, profile
from reparam.api.resume import read_finetuning
from reparam.api.run import Base
from reparam.api.sensitivity import SENSITIVITY_NAME
from reparam.checkpoint.load import load
from reparam.checkpoint.record import WEIGHTS_NAME, Record, read_record
from reparam.cost.baselines.base import REFERENCE
from reparam.cost.measurement import Measured
from reparam.errors import CheckpointError
from reparam.graph.provenance import provenance_of
from reparam.ops.routing import Router
from reparam.recipe.data_settings import DataSettings
from reparam.reporting.blocks import block_paths
from reparam.reporting.commands import data_of, read_args, reproduce
from reparam.reporting.exponents import exponent_histograms
from reparam.reporting.module_tree import module_tree
from reparam.reporting.page.records import (
    Figures,
    MappedImage,
    Missing,
    RoutingFacts,
    RunFacts,
    SiteLoss,
    StageScore,
)
from reparam.reporting.pictures import data_uri
from reparam.reporting.routing_map import routing_map
from reparam.tradeoff.records import read_sensitivity
from reparam.train.data import make_eval_loader, read_batches
from reparam.train.metrics import METRICS_NAME, read_history
from reparam.train.progress import Progress
from reparam.train.regime import count_outputs


def gather_run(
    folder: Path, *, data: DataSettings | None, images: int, measure: bool, base: Base, progress: Progress
) -> RunFacts:
    """Reads everything there is; what is missing says so.

    Args:
        folder: a run, or any checkpoint.
        data: where the images for the routing map come from; those the run was trained on when None, if still there.
        images: how many of them; 0 leaves the map out.
        measure: time the model and its original.
        base: the dense model of a run that only its owner can build.
        progress: who listens.
    Raises:
        CheckpointError: no run, or a file in it that is damaged.
        DataError: the named data cannot be read, or do not fit the model.
    """
    record, args, finetuning = read_record(folder), read_args(folder), read_finetuning(folder)
    history, sensitivity = read_history(folder / METRICS_NAME), _sensitivity(folder, record)
    progress.message(f"loading {folder}")
    model, original = load(folder, base=base), original_of(folder)
    dense = None if original is None else load(original, base=base)
    provenance = provenance_of(model)
    evaluation = read_evaluation(folder)
    routing = _routing(model, record, folder, data or _trained_on(args), images=images, progress=progress)
    progress.message(f"counting {'and timing ' if measure else ''}{folder}")
    now, was = _profiles(folder, model, dense, record, measure=measure, base=base)
    dense_evaluation = None if original is None else read_evaluation(original)
    if finetuning is not None and finetuning.dense is not None:
        dense_evaluation = finetuning.dense
    spec, recipe = record.base.spec, record.recipe
    return RunFacts(
        name=folder.resolve().name,
        folder=quote(str(folder)),
        model=spec.name,
        recipe=recipe.name if recipe else None,
        summary=recipe.summary if recipe else None,
        paper=recipe.paper if recipe else None,
        input_size=_input_size(record),
        dense_digest=record.base.digest,
        dense_folder=quote(str(original)) if original else None,
        dense=_figures(was, original) if was and original else None,
        model_figures=_figures(now, folder),
        blocks=block_paths(model if dense is None else dense),
        dense_evaluation=dense_evaluation,
        evaluation=evaluation,
        stages=tuple(
            StageScore(name=s.name, before=s.before, best=s.best, best_epoch=s.best_epoch, epochs=s.epochs)
            for s in (finetuning.stages if finetuning else ())
        ),
        tree=module_tree(
            dense, model, provenance.applied if provenance else None, has_measured_shares=now.experts == "measured"
        ),
        unseen=record.plan.unseen if record.plan else (),
        exponents=exponent_histograms(model),
        history=history,
        routing=routing,
        sensitivity=sensitivity,
        baselines=_baselines(folder),
        commands=reproduce(folder, record, args),
    )


def _input_size(record: Record) -> tuple[int, ...]:
    if record.base.spec.input_size is not None:
        return record.base.spec.input_size
    return record.plan.input_shape[1:] if record.plan else ()


def _profiles(
    folder: Path, model: nn.Module, dense: nn.Module | None, record: Record, *, measure: bool, base: Base
) -> tuple[Profile, Profile | None]:
    """Of the run and its original, measured in turns; models that only their owner can build, one after the other."""
    if base is None:
        profiled = profile(folder, measure=measure, baselines=REFERENCE, write=False)
        return profiled, profiled.dense
    evaluation = read_evaluation(folder)
    shares = {} if evaluation is None else evaluation.mult_share
    example = torch.randn(1, *_input_size(record))
    now = profile(model, example_input=example, measure=measure, baselines="none", mult_share=shares)
    return now, None if dense is None else profile(dense, example_input=example, measure=measure, baselines=REFERENCE)


def _figures(profiled: Profile, folder: Path) -> Figures:
    return Figures(
        parameters=profiled.parameters,
        operations=profiled.operations,
        modules=tuple((module.path, module.operations) for module in profiled.modules),
        uncounted=profiled.uncounted,
        experts=profiled.experts,
        file_bytes=(folder / WEIGHTS_NAME).stat().st_size,
        latency=profiled.latency,
    )


def _trained_on(args: Mapping[str, Any] | None) -> DataSettings | str:
    """The folder of images that the run was trained on, or why it is not read; other data sets may want a network."""
    data = None if args is None else data_of(args)
    if data is None or data.dataset or not data.data_dir:
        return "It takes real images to show which tokens go where"
    return data if Path(data.data_dir).exists() else f"{data.data_dir}, where it was trained, is gone"


def _routing(
    model: nn.Module, record: Record, folder: Path, data: DataSettings | str, *, images: int, progress: Progress
) -> RoutingFacts | Missing:
    if not any(isinstance(module, Router) for module in model.modules()):
        return Missing(why="The run has no mixtures of experts; the recipe shiftaddvit makes them")
    command = f"reparam report {quote(str(folder))} --data-dir DATA"
    if not images:
        return Missing(why="Left out by --images 0", command=command)
    if isinstance(data, str):
        return Missing(why=data, command=command)
    progress.message(f"reading images of {data.dataset or data.data_dir}")
    form, device = format_of(record, data), torch.device("cpu")
    outputs = count_outputs(model, form.input_size, device=device)
    loader, classes = make_eval_loader(
        data, image=form, num_classes=outputs, batch_size=images, workers=0, device=device, spread=images
    )
    inputs, labels = next(iter(read_batches(loader, device=device)))
    fewer = f", all that there are of the {images} asked for" if len(inputs) < images else ""
    progress.message(f"routing {len(inputs)} images through {folder}{fewer}")
    layers, logits = routing_map(model, inputs)
    names = {index: name for name, index in classes.items()}
    mapped = tuple(
        MappedImage(
            uri=data_uri(image, mean=form.mean, std=form.std),
            width=image.shape[-1],
            height=image.shape[-2],
            truth=str(names.get(label, label)),
            prediction=str(names.get(prediction, prediction)),
        )
        for image, label, prediction in zip(inputs, labels.tolist(), logits.argmax(dim=1).tolist(), strict=True)
    )
    return RoutingFacts(images=mapped, layers=layers, where=data.dataset or str(data.data_dir))


def _baselines(folder: Path) -> Measured | None:
    path = folder / PROFILE_NAME
    if not path.is_file():
        return None
    try:
        return Profile.model_validate_json(path.read_bytes()).measured
    except ValidationError:
        advice = f"remove it, or run: reparam profile {folder}"
        raise CheckpointError(f"{path} is not what reparam wrote; {advice}") from None


def _sensitivity(folder: Path, record: Record) -> tuple[SiteLoss, ...] | Missing:
    path = folder / SENSITIVITY_NAME
    recipe = "" if record.plan else " --recipe RECIPE"
    command = f"reparam sensitivity {quote(str(folder))}{recipe} --data-dir DATA"
    if not path.is_file():
        return Missing(why="No site was converted alone yet to see what that costs", command=command)
    return tuple(
        SiteLoss(path=site.path, kind=site.kind, operator=site.operator, top1_drop=site.top1_drop, kl=site.kl)
        for site in read_sensitivity(path).sites
    )
