"""What `finetune` and `find_lr` do first: convert a named model, open the run, resolve the settings of its stages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accelerate.utils import set_seed

from reparam.api.convert import convert
from reparam.api.evaluate import refuse_shape
from reparam.api.run import Base, Run, chosen_stages, copy_run, open_run
from reparam.api.subject import is_checkpoint, resolve_subject
from reparam.atomic import as_file_name
from reparam.checkpoint.record import read_record
from reparam.errors import CheckpointError, RecipeError
from reparam.processes import main_first
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.load import load_recipe
from reparam.recipe.resolve import resolve_settings, tracker_names
from reparam.recipe.schema import Recipe
from reparam.recipe.settings import TrainSettings
from reparam.train.engine import check_backend, pick_device
from reparam.train.resident import check_augmentation
from reparam.train.sharding import check_sharding
from reparam.train.splits import check_folders
from reparam.train.trackers import check_trackers


class Prepared(NamedTuple):
    """An open run, and the settings of each stage that is to be trained, by its number."""

    run: Run
    resolved: Mapping[int, TrainSettings]


def prepare(
    source: str | Path,
    *,
    recipe: str | Path | Recipe | None,
    data: DataSettings,
    settings: Mapping[str, object] | None,
    stage: int | None,
    weights: str,
    out: str | Path | None,
    resume: Literal["auto"] | None,
    overrides: Sequence[str],
    num_classes: int | None,
    img_size: int | None,
    in_chans: int | None,
    model_kwargs: Mapping[str, Any] | None,
    allow_partial: bool,
    device: str | None,
    base: Base,
) -> Prepared:
    """Returns what is to be trained; arguments and errors as `finetune`. Processes find each other here."""
    check_folders(data)
    given, where = dict(settings or {}), pick_device(device)
    set_seed(resolve_settings(given).seed)  # random weights of a named model, too, are the seed's
    shape = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "model_kwargs": model_kwargs}
    if is_checkpoint(source):
        refuse_shape(source, shape, weights=weights)
        folder = Path(source) if out is None else Path(out)
        with main_first() as first:  # all come here, whatever a late one finds in the folder
            if first and not (resume and is_checkpoint(folder)):
                copy_run(Path(source), folder)
    else:
        options = {"weights": weights, "overrides": overrides, "allow_partial": allow_partial}
        folder = _convert(str(source), recipe, out, shape, options, resume=resume)
    run = open_run(folder, data, recipe=recipe, overrides=overrides, device=where, base=base)
    stages = chosen_stages(run.plan, stage)
    resolved = {i: resolve_settings(run.plan.recipe.stages[i].finetune, given) for i in stages}
    for chosen in resolved.values():
        _check(chosen)
    return Prepared(run, resolved)


def _check(settings: TrainSettings) -> None:
    """Raises OptionError for what this machine or this way of training cannot do, before anything is replaced."""
    check_trackers(tracker_names(settings.log_with))
    check_sharding(settings)
    if settings.in_memory:
        check_augmentation(settings)
    if settings.torchcompile is not None:
        check_backend(settings.torchcompile)


def _convert(
    model: str,
    recipe: str | Path | Recipe | None,
    out: str | Path | None,
    shape: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    resume: Literal["auto"] | None,
) -> Path:
    """Converts a named model into its run's folder, unless that is there to be resumed, and returns the folder."""
    if recipe is None:
        raise RecipeError(
            f"{model}: no run is there, so it is taken for a model, and a model needs a recipe, such as "
            "--recipe shiftaddvit"
        )
    name = load_recipe(recipe, overrides=options["overrides"]).name
    folder = Path("runs") / as_file_name(f"{model}-{name}") if out is None else Path(out)
    with main_first() as first:
        if resume and is_checkpoint(folder):
            _check_same_model(folder, model, shape)
        elif first:
            convert(model, recipe, out=folder, **shape, **options)
    return folder


def _check_same_model(folder: Path, model: str, shape: Mapping[str, Any]) -> None:
    found, wanted = read_record(folder).base.spec, resolve_subject(model, **shape).spec
    # A trained run keeps how its images were prepared, which `check_request` compares.
    if found.model_copy(update={"data": wanted.data, "pretrained_cfg": wanted.pretrained_cfg}) != wanted:
        raise CheckpointError(
            f"{folder}: holds a run of {found.name} that was made otherwise than {model} is asked for now, so it "
            "cannot be resumed. Choose another folder with --out, or leave --resume out to convert anew."
        )
