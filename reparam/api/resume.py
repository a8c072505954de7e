"""What a run's training was asked for and has finished, so that it can go on, and refuses to go on as another.

RUN/finetune.json     the request, the dense model's accuracy, and the result of each finished stage
RUN/recovery/         states of the stage in training, see `reparam.checkpoint.recovery`
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from reparam.api.differences import flat_table
from reparam.atomic import write_text
from reparam.errors import CheckpointError
from reparam.processes import is_main, process_count
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.schema import Frozen, Recipe
from reparam.recipe.settings import TrainSettings
from reparam.train.evaluate import Evaluation

FINETUNE_NAME, RECOVERY = "finetune.json", "recovery"
#: What changes nothing about the weights that come out; `fsdp` at most how sums are rounded.
_FREE = frozenset({
    "workers", "validation_batch_size", "log_interval", "log_with", "recovery_interval", "checkpoint_hist",
    "max_bad_images", "fsdp",
})  # fmt: skip


class StageResult(Frozen):
    """One trained stage. `before` is the converted, untrained model; `best_epoch` 0 means that no epoch beat it."""

    name: str
    before: Evaluation
    best: Evaluation
    best_epoch: int
    epochs: int
    checkpoint: Path


class Finetuning(Frozen):
    """A training as it was asked for (`request`, plain values), and how far it has come.

    The stages of a run may be asked for one by one: `request` and `stages` are of all that make up the run so far.
    """

    request: dict[str, Any]
    dense: Evaluation | None = None
    stages: tuple[StageResult, ...] = ()

    @field_validator("request")
    @classmethod
    def _by_stage(cls, request: dict[str, Any]) -> dict[str, Any]:
        """Trainings that were begun before stages had counts of processes of their own have one for all."""
        if "processes" not in request:
            return request
        count, stages = {"processes": request["processes"]}, request["stages"]
        return {**request, "stages": {name: settings | count for name, settings in stages.items()}}

    def result(self, name: str) -> StageResult | None:
        """What a stage brought, or None where it is not finished."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def is_below_gate(self, stage: StageResult) -> bool:
        """Whether a finished stage fell further below the dense model than it was asked to."""
        gate = self.request["stages"][stage.name]["stop_if_top1_drop_above"]
        return self.dense is not None and gate is not None and self.dense.top1 - stage.best.top1 > gate

    def write(self, run: Path) -> None:
        """Writes it into the run's folder, whole or not at all; the main process does."""
        if is_main():
            write_text(run / FINETUNE_NAME, self.model_dump_json(indent=2) + "\n")


def begin_anew(before: Finetuning, request: Mapping[str, Any], *, order: Sequence[str]) -> Finetuning:
    """A training of the stages in `request`, which keeps what is on record of those before them.

    Unless these were trained by another recipe or on other data: then their accuracies do not compare.

    Args:
        before: what is on record.
        request: as `request_of` gives it.
        order: names of all stages of the run.
    """
    is_same = not _changes(before.request, request, stages=())
    first = min(order.index(name) for name in request["stages"])
    return _joined(before, request, kept=order[:first] if is_same else ())


def go_on(before: Finetuning, request: Mapping[str, Any], *, order: Sequence[str]) -> Finetuning:
    """What is finished of the run, less the stages after one that is still to be trained: they began with another.

    Args and order of stages as `begin_anew`; `check_request` has found nothing that differs.
    """
    left = [order.index(name) for name in request["stages"] if before.result(name) is None]
    kept = order[: min(left)] if left else order
    return _joined(before, request, kept=kept).model_copy(update={"dense": before.dense})


def _joined(before: Finetuning, request: Mapping[str, Any], *, kept: Sequence[str]) -> Finetuning:
    """The request together with what is on record of the stages to be kept."""
    results = tuple(stage for stage in before.stages if stage.name in kept)
    stages = {stage.name: before.request["stages"][stage.name] for stage in results}
    return Finetuning(request={**request, "stages": {**stages, **request["stages"]}}, stages=results)


def request_of(recipe: Recipe, data: DataSettings, resolved: Mapping[str, TrainSettings]) -> dict[str, Any]:
    """Everything that decides which weights come out, but the rules, which are the run's: data, settings, processes."""
    free = _FREE - {"workers"} if data.is_stream else _FREE  # loader processes share a stream out
    stages = {
        name: {key: _plain(value) for key, value in asdict(settings).items() if key not in free}
        | {"processes": process_count()}
        for name, settings in resolved.items()
    }
    return {
        "recipe": recipe.name,
        "data": {key: _plain(value) for key, value in asdict(data).items()},
        "stages": stages,
    }


def read_finetuning(run: Path) -> Finetuning | None:
    """Returns what a run's training left, or None.

    Raises:
        CheckpointError: the file is not intact.
    """
    file = run / FINETUNE_NAME
    if not file.exists():
        return None
    try:
        return Finetuning.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise CheckpointError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}). Remove it to train the run anew."
        ) from error


def check_request(before: Mapping[str, Any], now: Mapping[str, Any], *, run: Path) -> None:
    """Raises CheckpointError, naming what differs, unless both ask for the same training of the stages that both name.

    Another number of processes may go on with as many images in a step. A stream is shared out otherwise by them.
    """
    changed = _changes(before, now, stages=[name for name in now["stages"] if name in before["stages"]])
    if changed:
        raise CheckpointError(
            f"{run}: cannot be resumed, because it was trained otherwise:\n" + "\n".join(changed[:12]) + "\n"
            "Ask for the same again, or leave --resume out to begin anew."
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], *, stages: Collection[str]) -> list[str]:
    """One line for each value that differs in the recipe, the data, or the settings of some stages."""
    was, wanted = (_by_step(request, stages) for request in (before, now))
    changed = [key for key in sorted(was.keys() | wanted.keys()) if was.get(key) != wanted.get(key)]
    return [f"  {key}: was {was.get(key)!r}, is {wanted.get(key)!r}" for key in changed]


def _by_step(request: Mapping[str, Any], stages: Collection[str]) -> dict[str, Any]:
    """A request as a flat table, with the batches of all processes together in the place of each one's."""
    chosen = {name: dict(request["stages"][name]) for name in stages}
    if not DataSettings(dataset=request["data"]["dataset"]).is_stream:
        for settings in chosen.values():
            settings["batch_size, of all processes"] = settings.pop("processes") * settings.pop("batch_size")
    return flat_table({"recipe": request["recipe"], "data": request["data"], "stages": chosen})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
