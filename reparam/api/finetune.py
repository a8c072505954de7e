"""`reparam.finetune`: converts, trains and saves each stage of a recipe, from the best model of the stage before."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from reparam.api.convert import convert
from reparam.api.evaluate import refuse_shape, write_evaluation
from reparam.api.latency import set_expert_latencies_
from reparam.api.run import Base, Run, as_file_name, chosen_stages, copy_run, open_run
from reparam.api.subject import is_checkpoint
from reparam.errors import RecipeError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.load import load_recipe
from reparam.recipe.resolve import resolve_settings
from reparam.recipe.schema import Frozen, Recipe
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders, first_images, make_loaders
from reparam.train.engine import pick_device
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.fitting import fit_model_
from reparam.train.loop import Trainer
from reparam.train.progress import Progress, Silent, StageReport
from reparam.train.splits import check_folders
from reparam.train.summary import SUMMARY_NAME, Summary, Written, write_args


class StageResult(Frozen):
    """One trained stage. `before` is the converted, untrained model; `best_epoch` 0 means that no epoch beat it."""

    name: str
    before: Evaluation
    best: Evaluation
    best_epoch: int
    epochs: int
    checkpoint: Path


class FinetuneResult(Frozen):
    """A fine-tuned run: where it is, how good the dense original was, and what each trained stage brought."""

    out: Path
    dense: Evaluation
    stages: tuple[StageResult, ...]


def finetune(
    source: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    data: DataSettings,
    settings: Mapping[str, object] | None = None,
    stage: int | None = None,
    weights: str = "hub",
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    device: str | None = None,
    base: Base = None,
) -> FinetuneResult:
    """Trains the stages of a recipe, each distilled from the dense original, and leaves the best model in the run.

    Args:
        source: a run, or a model as `convert` takes it, which is then converted into `out` first.
        recipe: wanted for a model; for a run only its fine-tuning may differ from what the run was converted with.
        data: which images.
        settings: training settings that win over the recipe's, which win over the defaults.
        stage: train this stage only, from the best model of the stage before.
        weights: of a named model.
        out: folder of the run; for a model `runs/MODEL-RECIPE` when None, for a run the run itself.
        overrides: changes of the recipe, such as "stage.0.finetune.epochs=3".
        progress: who listens.
        num_classes: classes of a named model.
        img_size: side of its square images, in pixels.
        in_chans: channels of its images.
        model_kwargs: further arguments of its builder.
        allow_partial: keep refused sites of a named model as they are instead of raising.
        device: such as "cpu" or "cuda:1"; CUDA where there is one when None.
        base: the dense model of a run that only its owner can build.
    Raises:
        DataError: the data cannot be read, or does not fit the model.
        OptionError: training settings with faults, all named at once.
        RecipeError: no recipe for a model, or one whose rules are not the run's.
        CheckpointError: the run is not intact, or the stage before was not trained.
        TrainError: the loss is infinite or not a number.
    """
    check_folders(data)
    given, where = dict(settings or {}), pick_device(device)
    resolve_settings(given)
    shape = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "model_kwargs": model_kwargs}
    if is_checkpoint(source):
        refuse_shape(source, shape)
        folder = Path(source) if out is None else copy_run(Path(source), Path(out))
    else:
        options = {**shape, "weights": weights, "overrides": overrides, "allow_partial": allow_partial}
        folder = _convert(str(source), recipe, out, options)
    run = open_run(folder, data, recipe=recipe, overrides=overrides, device=where, base=base)
    stages = chosen_stages(run.plan, stage)
    resolved = {i: resolve_settings(run.plan.recipe.stages[i].finetune, given) for i in stages}
    return _train(run, data, resolved, source=str(source), progress=progress or Silent())


def _convert(
    model: str, recipe: str | Path | Recipe | None, out: str | Path | None, options: Mapping[str, Any]
) -> Path:
    """Converts a named model into its run's folder and returns that."""
    if recipe is None:
        raise RecipeError(
            f"{model}: no run is there, so it is taken for a model, and a model needs a recipe, such as "
            "--recipe shiftaddvit"
        )
    name = load_recipe(recipe, overrides=options["overrides"]).name
    folder = Path("runs") / as_file_name(f"{model}-{name}") if out is None else Path(out)
    convert(model, recipe, out=folder, **options)
    return folder


def _train(
    run: Run, data: DataSettings, resolved: Mapping[int, TrainSettings], *, source: str, progress: Progress
) -> FinetuneResult:
    if (run.folder / SUMMARY_NAME).exists():
        progress.message(f"{run.folder} was trained before; stages that are trained again begin anew and are replaced")
    names = [run.plan.stages[i].name for i in resolved]
    told = Written(progress, Summary(run.folder / SUMMARY_NAME, stages=names))
    dense: Evaluation | None = None
    results: list[StageResult] = []
    for i, settings in resolved.items():
        loaders = make_loaders(data, settings, image=run.image, num_classes=run.num_classes, device=run.device)
        if dense is None:
            write_args(run.folder / "args.yaml", _args(run, data, resolved, source=source))
            progress.message("evaluating the dense original")
            dense = evaluate_model(run.dense, loaders.val, run.device)
        results.append(_train_stage(run, i, settings, loaders=loaders, progress=told))
    assert dense is not None
    if len(run.plan.stages) - 1 in resolved:
        run.promote(len(run.plan.stages) - 1)
        write_evaluation(run.folder, results[-1].best)
    return FinetuneResult(out=run.folder, dense=dense, stages=tuple(results))


def _train_stage(run: Run, i: int, settings: TrainSettings, *, loaders: Loaders, progress: Progress) -> StageResult:
    set_seed(settings.seed)
    name, model = run.plan.stages[i].name, run.stage_model(i)
    if settings.fit_images:
        _fit_to_dense_(model, run, settings, loaders=loaders, progress=progress)
    example_input = torch.zeros(settings.batch_size, *run.image.input_size, device=run.device)
    for line in set_expert_latencies_(model, settings.latency, example_input):
        progress.message(line)
    before = evaluate_model(model, loaders.val, run.device)
    trainer = Trainer(
        model,
        loaders,
        settings=settings,
        num_classes=run.num_classes,
        device=run.device,
        teacher=_teacher(run, settings, progress),
        stage=name,
        save=run.saver(i),
        progress=progress,
    )
    progress.stage_started(
        StageReport(
            name=name,
            index=i,
            stages=len(run.plan.stages),
            epochs=trainer.schedule.epochs,
            steps_per_epoch=trainer.schedule.steps,
            before=before,
        )
    )
    fit = trainer.fit(before=before)
    return StageResult(
        name=name,
        before=before,
        best=fit.best,
        best_epoch=fit.best_epoch,
        epochs=len(fit.epochs),
        checkpoint=run.stage_folder(i),
    )


def _fit_to_dense_(
    model: nn.Module, run: Run, settings: TrainSettings, *, loaders: Loaders, progress: Progress
) -> None:
    if run.weights.kind == "none":
        progress.message("no fit to the dense original: it has random weights")
        return
    numbers = itertools.count(1)

    def report(path: str, correlation: float, layers: int) -> None:
        progress.message(f"fitted {next(numbers)}/{layers} {path}: correlation {correlation:.2f} with the dense layer")

    images = first_images(loaders.train, settings.fit_images, device=run.device)
    fitted = fit_model_(model, run.dense, images, steps=settings.fit_steps, layer_fitted=report)
    if fitted.correlations:
        mean = statistics.fmean(fitted.correlations.values())
        progress.message(f"{len(fitted.correlations)} layers fitted on {fitted.images} images: correlation {mean:.2f}")


def _teacher(run: Run, settings: TrainSettings, progress: Progress) -> Any:
    """The dense original, unless it knows nothing: weights that were never trained only mislead."""
    if not settings.distill_loss_weight:
        return None
    if run.weights.kind == "none":
        progress.message("no distillation: the dense original has random weights")
        return None
    return run.dense


def _args(run: Run, data: DataSettings, resolved: Mapping[int, TrainSettings], *, source: str) -> dict[str, Any]:
    stages = [{"stage": run.plan.stages[i].name, **asdict(settings)} for i, settings in resolved.items()]
    return {
        "source": source,
        "model": run.record.base.spec.name,
        "recipe": run.plan.recipe.name,
        "device": str(run.device),
        **asdict(data),
        "stages": stages,
    }
