"""`reparam.finetune`: converts, trains and saves each stage of a recipe, from the best model of the stage before."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from torch import nn

from reparam.api.convert import convert
from reparam.api.evaluate import refuse_shape, write_evaluation
from reparam.api.resume import (
    RECOVERY,
    Finetuning,
    StageResult,
    check_request,
    read_finetuning,
    request_of,
)
from reparam.api.run import Base, Run, chosen_stages, copy_run, open_run
from reparam.api.subject import is_checkpoint, resolve_subject
from reparam.atomic import as_file_name
from reparam.checkpoint.record import read_record
from reparam.checkpoint.recovery import forget_states, newest_state, write_state
from reparam.errors import CheckpointError, RecipeError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.load import load_recipe
from reparam.recipe.resolve import resolve_settings
from reparam.recipe.schema import Frozen, Recipe
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders, first_images, make_loaders
from reparam.train.engine import pick_device
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.features import feature_points
from reparam.train.fitting import fit_model_
from reparam.train.loop import Trainer
from reparam.train.processes import is_main, main_first
from reparam.train.progress import Progress, Silent, StageReport
from reparam.train.splits import check_folders
from reparam.train.summary import SUMMARY_NAME, Summary, Written, write_args


class FinetuneResult(Frozen):
    """A fine-tuned run: where it is, how good the dense original was, and what each trained stage brought.

    `stopped` says why stages were left out, and `kept` which stage's model the run is now; None is the converted one.
    """

    out: Path
    dense: Evaluation
    stages: tuple[StageResult, ...]
    stopped: str | None = None
    kept: str | None = None


def finetune(
    source: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    data: DataSettings,
    settings: Mapping[str, object] | None = None,
    stage: int | None = None,
    weights: str = "hub",
    out: str | Path | None = None,
    resume: Literal["auto"] | None = None,
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
        resume: "auto" goes on where the run's training was stopped, if it was begun; None begins anew.
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
        CheckpointError: the run is not intact, the stage before was not trained, or what is to be resumed was trained
            otherwise.
        TrainError: the loss is infinite or not a number.
    """
    check_folders(data)
    given, where = dict(settings or {}), pick_device(device)
    set_seed(resolve_settings(given).seed)  # random weights of a named model, too, are the seed's
    told = progress if progress is not None and is_main() else Silent()
    shape = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "model_kwargs": model_kwargs}
    if is_checkpoint(source):
        refuse_shape(source, shape)
        folder = Path(source) if out is None else Path(out)
        with main_first() as first:
            if first and not (resume and is_checkpoint(folder)):
                copy_run(Path(source), folder)
    else:
        options = {**shape, "weights": weights, "overrides": overrides, "allow_partial": allow_partial}
        folder = _convert(str(source), recipe, out, options, resume=resume)
    run = open_run(folder, data, recipe=recipe, overrides=overrides, device=where, base=base)
    stages = chosen_stages(run.plan, stage)
    resolved = {i: resolve_settings(run.plan.recipe.stages[i].finetune, given) for i in stages}
    return _train(run, data, resolved, source=str(source), resume=resume, progress=told)


def _convert(
    model: str,
    recipe: str | Path | Recipe | None,
    out: str | Path | None,
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
    if resume and is_checkpoint(folder):
        _check_same_model(
            folder, model, {key: options[key] for key in ("num_classes", "img_size", "in_chans", "model_kwargs")}
        )
        return folder
    with main_first() as first:
        if first:
            convert(model, recipe, out=folder, **options)
    return folder


def _check_same_model(folder: Path, model: str, shape: Mapping[str, Any]) -> None:
    found, wanted = read_record(folder).base.spec, resolve_subject(model, **shape).spec
    if found != wanted:
        raise CheckpointError(
            f"{folder}: holds a run of {found.name} that was made otherwise than {model} is asked for now, so it "
            "cannot be resumed. Choose another folder with --out, or leave --resume out to convert anew."
        )


def _train(
    run: Run,
    data: DataSettings,
    resolved: Mapping[int, TrainSettings],
    *,
    source: str,
    resume: Literal["auto"] | None,
    progress: Progress,
) -> FinetuneResult:
    names = {i: run.plan.stages[i].name for i in resolved}
    request = request_of(run.plan.recipe, data, {names[i]: settings for i, settings in resolved.items()})
    finetuning = _begin(run, request, resume=resume, progress=progress)
    done = len(finetuning.stages)
    summary = Summary(run.folder / SUMMARY_NAME, stages=list(names.values())[done:])
    for i, settings in list(resolved.items())[done:]:
        loaders = make_loaders(data, settings, image=run.image, num_classes=run.num_classes, device=run.device)
        if finetuning.dense is None:
            if is_main():
                write_args(run.folder / "args.yaml", _args(run, data, resolved, source=source))
            progress.message("evaluating the dense original")
            dense = evaluate_model(run.dense, loaders.val, run.device)
            finetuning = finetuning.model_copy(update={"dense": dense})
        result = _train_stage(run, i, settings, loaders=loaders, summary=summary, progress=progress)
        finetuning = finetuning.model_copy(update={"stages": (*finetuning.stages, result)})
        finetuning.write(run.folder)
        if is_main():
            forget_states(run.folder / RECOVERY)
        if finetuning.dense is not None and _is_below_gate(result, settings, finetuning.dense):
            break
    return _finish(run, resolved, finetuning, progress=progress)


def _begin(run: Run, request: dict[str, Any], *, resume: Literal["auto"] | None, progress: Progress) -> Finetuning:
    """What was finished of the same request, where that is to be gone on with, else nothing."""
    before = read_finetuning(run.folder)
    if resume and before is not None:
        check_request(before.request, request, run=run.folder)
        if before.stages:
            progress.message(f"already trained: {', '.join(stage.name for stage in before.stages)}")
        return before
    if before is not None:
        progress.message(f"{run.folder} was trained before; stages that are trained again begin anew and are replaced")
    with main_first() as first:
        if first:
            forget_states(run.folder / RECOVERY)
            Finetuning(request=request).write(run.folder)
    return Finetuning(request=request)


def _is_below_gate(result: StageResult, settings: TrainSettings, dense: Evaluation) -> bool:
    gate = settings.stop_if_top1_drop_above
    return gate is not None and dense.top1 - result.best.top1 > gate


def _finish(
    run: Run, resolved: Mapping[int, TrainSettings], finetuning: Finetuning, *, progress: Progress
) -> FinetuneResult:
    """Makes the last stage's model the run's own, or the best one before a stage that fell below its gate."""
    dense, results = finetuning.dense, dict(zip(resolved, finetuning.stages, strict=False))
    assert dense is not None
    failed = next((i for i, result in results.items() if _is_below_gate(result, resolved[i], dense)), None)
    good = [i for i in results if failed is None or i < failed]
    stopped = None
    if failed is not None:
        result, gate = results[failed], resolved[failed].stop_if_top1_drop_above
        stopped = (
            f'stage "{result.name}" ends {dense.top1 - result.best.top1:.2f} points of top-1 below the dense model, '
            f"more than the {gate:g} that stop_if_top1_drop_above allows"
        )
        progress.message(stopped)
    last = len(run.plan.stages) - 1
    kept = max(good, key=lambda i: results[i].best.top1, default=None) if failed is not None else last
    if kept in results and is_main():
        run.promote(kept)
        write_evaluation(run.folder, results[kept].best)
    return FinetuneResult(
        out=run.folder,
        dense=dense,
        stages=finetuning.stages,
        stopped=stopped,
        kept=run.plan.stages[kept].name if kept in results else None,
    )


def _train_stage(
    run: Run, i: int, settings: TrainSettings, *, loaders: Loaders, summary: Summary, progress: Progress
) -> StageResult:
    set_seed(settings.seed)
    name, model = run.plan.stages[i].name, run.stage_model(i)
    state = newest_state(
        run.folder / RECOVERY,
        name,
        passed_over=lambda path: progress.message(f"{path} is not intact and is passed over"),
    )
    if state is None and settings.fit_images:
        _fit_to_dense_(model, run, settings, loaders=loaders, progress=progress)
    before = evaluate_model(model, loaders.val, run.device) if state is None else state.history.before
    teacher = _teacher(run, settings, progress)
    trainer = Trainer(
        model,
        loaders,
        settings=settings,
        num_classes=run.num_classes,
        device=run.device,
        teacher=teacher,
        feature_points=_feature_points(run, i, model, settings, progress) if teacher is not None else (),
        stage=name,
        save=run.saver(i),
        keep=lambda state: write_state(run.folder / RECOVERY, state, keep=settings.checkpoint_hist),
        progress=Written(progress, summary),
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
    if state is not None:
        trainer.resume(state)
        for report in state.history.epochs:
            summary.append(report)
        progress.message(f'resumed stage "{name}" at epoch {state.epoch}, after {state.updates} steps')
    history = trainer.fit(before=before)
    return StageResult(
        name=name,
        before=history.before,
        best=history.best,
        best_epoch=history.best_epoch,
        epochs=len(history.epochs),
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
    if not settings.distill_loss_weight and not settings.feature_loss_weight:
        return None
    if run.weights.kind == "none":
        progress.message("no distillation: the dense original has random weights")
        return None
    return run.dense


def _feature_points(run: Run, i: int, model: nn.Module, settings: TrainSettings, progress: Progress) -> tuple[str, ...]:
    """Where the features of a stage are distilled, which is told; empty when they are not."""
    if not settings.feature_loss_weight:
        return ()
    points = feature_points(
        model,
        run.dense,
        [step.site.path for step in run.plan.stages[i].steps],
        images=torch.zeros(2, *run.image.input_size, device=run.device),
        kind=settings.feature_points,
    )
    progress.message(f"distilling the features of {', '.join(points)}")
    return points


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
