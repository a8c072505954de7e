"""`reparam.finetune`: converts, trains and saves each stage of a recipe, from the best model of the stage before."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from reparam.api.evaluate import write_evaluation
from reparam.api.listeners import Resumed, recorded
from reparam.api.prepare import prepare
from reparam.api.profile import PROFILE_NAME
from reparam.api.resume import (
    RECOVERY,
    Finetuning,
    StageResult,
    begin_anew,
    check_request,
    go_on,
    read_finetuning,
    request_of,
)
from reparam.api.run import Base, Run
from reparam.api.stage import find_state, train_stage
from reparam.checkpoint.recovery import forget_states
from reparam.processes import is_main, wait_for_all
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.schema import Frozen, Recipe
from reparam.recipe.settings import TrainSettings
from reparam.reporting.commands import ARGS_NAME, read_args
from reparam.train.data import make_loaders
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.progress import Progress, Silent
from reparam.train.summary import write_args


class FinetuneResult(Frozen):
    """A fine-tuned run: where it is, how good the dense original was, and what each stage that was asked for brought.

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
        resume: "auto" goes on where the run's training was stopped, if it was begun; None begins anew. Either keeps
            what is on record of the stages before those that are trained, by the same recipe on the same data.
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
    told = progress if progress is not None and is_main() else Silent()
    run, resolved = prepare(
        source,
        recipe=recipe,
        data=data,
        settings=settings,
        stage=stage,
        weights=weights,
        out=out,
        resume=resume,
        overrides=overrides,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        model_kwargs=model_kwargs,
        allow_partial=allow_partial,
        device=device,
        base=base,
    )
    names = {run.plan.stages[i].name: settings for i, settings in resolved.items()}
    finetuning = _begin(run, request_of(run.plan.recipe, data, names), resume=resume, progress=told)
    if is_main():
        _note_args(run, data, resolved, finetuning, source=str(source))
    finetuning = _train(run, data, resolved, finetuning, resume=resume, progress=told)
    return _finish(run, resolved, finetuning, progress=told)


def _begin(run: Run, request: dict[str, Any], *, resume: Literal["auto"] | None, progress: Progress) -> Finetuning:
    """What stays of what was finished, of the same request where that is to be gone on with; changes no file."""
    before, order = read_finetuning(run.folder), [stage.name for stage in run.plan.stages]
    if before is None:
        return Finetuning(request=request)
    if resume is None:
        progress.message(f"{run.folder} was trained before; stages that are trained again begin anew and are replaced")
        return begin_anew(before, request, order=order)
    check_request(before.request, request, run=run.folder)
    finetuning = go_on(before, request, order=order)
    done = [name for name in request["stages"] if finetuning.result(name)]
    _tell_of_processes(before.request["stages"], request["stages"], done=done, progress=progress)
    if done:
        progress.message(f"already trained: {', '.join(done)}")
    return finetuning


def _tell_of_processes(
    before: Mapping[str, Any], now: Mapping[str, Any], *, done: Sequence[str], progress: Progress
) -> None:
    begun = next((name for name in now if name in before and name not in done), None)
    if begun is None:
        return
    was, count = (stages[begun]["processes"] for stages in (before, now))
    if was != count:
        progress.message(
            f"begun by {was} process{'es' if was > 1 else ''}, goes on with {count}: its noise is another one"
        )


def _train(
    run: Run,
    data: DataSettings,
    resolved: Mapping[int, TrainSettings],
    finetuning: Finetuning,
    *,
    resume: Literal["auto"] | None,
    progress: Progress,
) -> Finetuning:
    """Trains the stages that are left, and returns what is finished then."""
    if _failed(run, resolved, finetuning) is not None:
        return finetuning  # what its gate has stopped does not go on
    left = [i for i in resolved if finetuning.result(run.plan.stages[i].name) is None]
    state = find_state(run, left[0], progress) if resume and left else None
    resumed = None
    if state is not None:
        resumed = Resumed(stage=state.stage, updates=state.updates, epochs=len(state.history.epochs))
    anew = [run.plan.stages[i].name for i in left[state is not None :]]
    records = recorded(run.folder, progress, anew=anew, settings=resolved.values(), resumed=resumed)
    with records if is_main() else nullcontext(progress) as told:
        for i in left:
            settings = resolved[i]
            loaders = make_loaders(data, settings, image=run.image, num_classes=run.num_classes, device=run.device)
            dense = finetuning.dense
            if dense is None:
                progress.message("evaluating the dense original")
                dense = evaluate_model(run.dense, loaders.val, run.device)
            finetuning = finetuning.model_copy(update={"dense": dense})
            result = train_stage(
                run,
                i,
                settings,
                loaders=loaders,
                dense=dense,
                state=state,
                started=partial(_note_start, run, finetuning),
                progress=told,
            )
            state = None
            finetuning = finetuning.model_copy(update={"stages": (*finetuning.stages, result)})
            finetuning.write(run.folder)
            if is_main():
                forget_states(run.folder / RECOVERY)
            wait_for_all()  # the next stage begins with what the main process has just saved
            if finetuning.is_below_gate(result):
                break
    return finetuning


def _note_start(run: Run, finetuning: Finetuning) -> None:
    """Puts the request on record, and away what an earlier training left to be resumed."""
    if is_main():
        forget_states(run.folder / RECOVERY)
        finetuning.write(run.folder)


def _failed(run: Run, resolved: Mapping[int, TrainSettings], finetuning: Finetuning) -> int | None:
    """The first of the chosen stages that is below its gate, if one is."""
    results = {i: finetuning.result(run.plan.stages[i].name) for i in resolved}
    return next((i for i, result in results.items() if result and finetuning.is_below_gate(result)), None)


def _finish(
    run: Run, resolved: Mapping[int, TrainSettings], finetuning: Finetuning, *, progress: Progress
) -> FinetuneResult:
    """Makes the last stage's model the run's own, or the best good one before a stage that fell below its gate."""
    names, failed, stopped = [stage.name for stage in run.plan.stages], _failed(run, resolved, finetuning), None
    results = {names.index(result.name): result for result in finetuning.stages}
    kept = len(names) - 1 if len(names) - 1 in resolved else None
    if failed is not None:
        stopped = _why_stopped(results[failed], finetuning)
        good = [i for i, result in results.items() if i < failed and not finetuning.is_below_gate(result)]
        kept = max(good, key=lambda i: results[i].best.top1, default=None)
    if kept is not None and is_main():
        run.promote(kept)
        write_evaluation(run.folder, results[kept].best)
        (run.folder / PROFILE_NAME).unlink(missing_ok=True)  # that of the weights before
    now = _model_name(run, kept)
    if stopped is not None:
        model = "the converted model" if now is None else f'the model of stage "{now}"'
        progress.message(stopped)
        progress.message(f"the run {'stays' if kept is None else 'is now'} {model}")
    assert finetuning.dense is not None
    return FinetuneResult(
        out=run.folder,
        dense=finetuning.dense,
        stages=tuple(results[i] for i in resolved if i in results),
        stopped=stopped,
        kept=now,
    )


def _model_name(run: Run, kept: int | None) -> str | None:
    """The stage whose model the run is: where no stage took its place, that of when it was opened, or None."""
    stages = run.record.stages if kept is None else kept + 1
    return None if stages is None else run.plan.stages[stages - 1].name


def _why_stopped(result: StageResult, finetuning: Finetuning) -> str:
    assert finetuning.dense is not None
    gate = finetuning.request["stages"][result.name]["stop_if_top1_drop_above"]
    return (
        f'stage "{result.name}" ends {finetuning.dense.top1 - result.best.top1:.2f} points of top-1 below the dense '
        f"model, more than the {gate:g} that stop_if_top1_drop_above allows"
    )


def _note_args(
    run: Run, data: DataSettings, resolved: Mapping[int, TrainSettings], finetuning: Finetuning, *, source: str
) -> None:
    """Writes the settings of this call, after those of the stages that were trained before; once for a training."""
    asked = [{"stage": run.plan.stages[i].name, **asdict(settings)} for i, settings in resolved.items()]
    names = {entry["stage"] for entry in asked}
    before = (read_args(run.folder) or {"stages": []})["stages"]
    if finetuning.dense is not None and names <= {entry["stage"] for entry in before}:
        return
    kept = [entry for entry in before if entry["stage"] not in names and finetuning.result(entry["stage"])]
    args = {
        "source": source,
        "model": run.record.base.spec.name,
        "recipe": run.plan.recipe.name,
        "device": str(run.device),
        **asdict(data),
        "stages": [*kept, *asked],
    }
    write_args(run.folder / ARGS_NAME, args)
