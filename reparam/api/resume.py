"""What a run's training was asked for and has finished, so that it can go on, and refuses to go on as another.

RUN/finetune.json     the request, the dense model's accuracy, and the result of each finished stage
RUN/recovery/         states of the stage in training, see `reparam.checkpoint.recovery`
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

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
    """A training as it was asked for (`request`, plain values), and how far it has come."""

    request: dict[str, Any]
    dense: Evaluation | None = None
    stages: tuple[StageResult, ...] = ()

    def write(self, run: Path) -> None:
        """Writes it into the run's folder, whole or not at all; the main process does."""
        if is_main():
            write_text(run / FINETUNE_NAME, self.model_dump_json(indent=2) + "\n")


def request_of(recipe: Recipe, data: DataSettings, resolved: Mapping[str, TrainSettings]) -> dict[str, Any]:
    """Everything that decides which weights come out, but the rules, which are the run's: data, settings, processes."""
    free = _FREE - {"workers"} if data.is_stream else _FREE  # loader processes share a stream out
    stages = {
        name: {key: _plain(value) for key, value in asdict(settings).items() if key not in free}
        for name, settings in resolved.items()
    }
    return {
        "recipe": recipe.name,
        "data": {key: _plain(value) for key, value in asdict(data).items()},
        "stages": stages,
        "processes": process_count(),
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
    """Raises CheckpointError, naming what differs, unless both ask for the same training.

    Another number of processes may go on with as many images in a step. A stream is shared out otherwise by them.
    """
    was, wanted = (_by_step(request) for request in (before, now))
    changed = [key for key in sorted(was.keys() | wanted.keys()) if was.get(key) != wanted.get(key)]
    if changed:
        listed = "\n".join(f"  {key}: was {was.get(key)!r}, is {wanted.get(key)!r}" for key in changed[:12])
        raise CheckpointError(
            f"{run}: cannot be resumed, because it was trained otherwise:\n{listed}\n"
            "Ask for the same again, or leave --resume out to begin anew."
        )


def _by_step(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request as a flat table, with the batches of all processes together in the place of each one's."""
    flat = flat_table(request)
    if DataSettings(dataset=flat["data.dataset"]).is_stream:
        return flat
    processes = flat.pop("processes")
    for name in [key for key in flat if key.endswith(".batch_size")]:
        flat[f"{name}, of all processes"] = processes * flat.pop(name)
    return flat


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
