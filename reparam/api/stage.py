"""One stage of a run: its model, fitted where that is asked for, its teacher, its training, and what that brought."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate.utils import set_seed
from torch import nn

from reparam.api.calibrate import CALIBRATION_IMAGES, calibrated_, calibrated_steps, corrected_, followed
from reparam.api.latency import latency_lines, set_expert_latencies_, write_latencies
from reparam.api.resume import RECOVERY, StageResult
from reparam.api.run import LAST, Run
from reparam.calibrate.records import CalibrationStep
from reparam.checkpoint.record import read_record
from reparam.checkpoint.recovery import newest_state, write_state
from reparam.graph.records import Step
from reparam.processes import broadcast_from_main_, is_main
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders, first_images
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.features import feature_points
from reparam.train.fitting import fit_model_
from reparam.train.loop import Trainer
from reparam.train.progress import Progress, StageReport
from reparam.train.routing import target_shares
from reparam.train.state import TrainState


def train_stage(
    run: Run,
    i: int,
    settings: TrainSettings,
    *,
    loaders: Loaders,
    dense: Evaluation,
    state: TrainState | None,
    started: Callable[[], None],
    progress: Progress,
) -> StageResult:
    """Trains stage `i` from its beginning or from `state`, and leaves its best model in the stage's folder.

    `started` is called once nothing stands in the way of beginning anew.

    Raises:
        OptionError, TrainError, DataError, CheckpointError: as `finetune`.
    """
    if state is not None:
        # Expert latencies that were measured when the stage began are in the plan of its newest model.
        plan = read_record(run.folder / LAST).plan
        assert plan is not None
        run = replace(run, plan=plan)
    model = _untrained(run, i, settings) if state is not None else start_stage(run, i, settings, loaders, progress)
    before = evaluate_model(model, loaders.val, run.device) if state is None else state.history.before
    name, teacher = run.plan.stages[i].name, find_teacher(run, settings, progress)
    trainer = Trainer(
        model,
        loaders,
        settings=settings,
        num_classes=run.num_classes,
        device=run.device,
        teacher=teacher,
        feature_points=distilled_points(run, i, model, settings, progress) if teacher is not None else (),
        stage=name,
        save=run.saver(i),
        keep=lambda state: write_state(run.folder / RECOVERY, state, keep=settings.checkpoint_hist),
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
            dense=dense,
            target_share=target_shares(model),
        )
    )
    if state is None:
        started()
    else:
        trainer.resume(state)
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


def find_state(run: Run, i: int, progress: Progress) -> TrainState | None:
    """The state that a stage can go on from, if there is one; a torn one is named."""
    return newest_state(
        run.folder / RECOVERY,
        run.plan.stages[i].name,
        passed_over=lambda path: progress.message(f"{path} is not intact and is passed over"),
    )


def start_stage(run: Run, i: int, settings: TrainSettings, loaders: Loaders, progress: Progress) -> nn.Module:
    """The model that a stage begins with, the same in all processes: converted, fitted, expert latencies known."""
    model = _untrained(run, i, settings)
    _start_from_dense_(model, run, run.plan.stages[i].steps, loaders=loaders, progress=progress)
    if settings.fit_images:
        _fit_to_dense_(model, run, settings, loaders=loaders, progress=progress)
    # Each process has fitted to images of its own; what is measured, averaged and trained is one model.
    broadcast_from_main_([*model.parameters(), *model.buffers()])
    example_input = torch.zeros(settings.batch_size, *run.image.input_size, device=run.device)
    latencies = set_expert_latencies_(model, settings.latency, example_input)
    for line in latency_lines(latencies):
        progress.message(line)
    if latencies and is_main():
        write_latencies(run.folder / f"latency-{run.stage_folder(i).name}.csv", latencies)
    return model


def find_teacher(run: Run, settings: TrainSettings, progress: Progress) -> nn.Module | None:
    """The dense original, unless it knows nothing: weights that were never trained only mislead."""
    if not settings.distill_loss_weight and not settings.feature_loss_weight:
        return None
    if run.weights.kind == "none":
        progress.message("no distillation: the dense original has random weights")
        return None
    return run.dense


def distilled_points(
    run: Run, i: int, model: nn.Module, settings: TrainSettings, progress: Progress
) -> tuple[str, ...]:
    """Where a stage's model learns the features of the dense original, which is told; empty when it does not."""
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


def _untrained(run: Run, i: int, settings: TrainSettings) -> nn.Module:
    set_seed(settings.seed)
    return run.stage_model(i)


def _start_from_dense_(
    model: nn.Module, run: Run, steps: Sequence[Step], *, loaders: Loaders, progress: Progress
) -> None:
    example_input = torch.zeros(2, *run.image.input_size, device=run.device)
    corrected_(model, run.dense, example_input, steps=steps)
    calibrated = calibrated_steps(steps)
    if not calibrated:
        return
    if run.weights.kind == "none":
        progress.message("no calibration to the dense original: it has random weights")
        return

    def report(step: CalibrationStep) -> None:
        progress.message(f"calibrated {step.number}/{step.layers} {step.fit.path}: output error {step.fit.error:.1%}")

    images = first_images(loaders.train, CALIBRATION_IMAGES, device=run.device)
    shown = followed(run.dense, calibrated, example_input)
    calibrated_(model, shown, images, steps=calibrated, progress=report)


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
