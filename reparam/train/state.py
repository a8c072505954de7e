"""Everything a stage's training needs to go on as if it had never stopped, as plain values and tensors.

Random numbers are no part of it: they follow from their place (`reparam.train.randomness`), as does the order.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from reparam.train.evaluate import Evaluation
from reparam.train.progress import EpochReport

#: Takes a state as the newest one, once it is complete.
Keep = Callable[["TrainState"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What the epochs so far brought. `best_epoch` counts from 1; 0 means that none beat the model as it came."""

    before: Evaluation
    best: Evaluation
    best_epoch: int = 0
    epochs: tuple[EpochReport, ...] = ()

    def then(self, report: EpochReport) -> "History":
        """The history with one more epoch."""
        epochs = (*self.epochs, report)
        if not report.is_best:
            return replace(self, epochs=epochs)
        return replace(self, epochs=epochs, best=report.evaluation, best_epoch=report.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """A stage after `step` steps of `epoch` (from 1), which were `updates` in all.

    `parts` holds the state dictionaries of model, moving average, optimiser, schedule and scaler; `figures` what the
    meter and the routing recorder have collected in this epoch.
    """

    stage: str
    epoch: int
    step: int
    updates: int
    history: History
    parts: Mapping[str, Any] = field(repr=False)
    figures: Mapping[str, Any] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Tensors in containers of strings, numbers, lists and dictionaries, such as a safe loader takes."""
        values = {name: getattr(self, name) for name in ("stage", "epoch", "step", "updates", "parts", "figures")}
        history = {
            "before": self.history.before.model_dump(mode="json"),
            "best": self.history.best.model_dump(mode="json"),
            "best_epoch": self.history.best_epoch,
            "epochs": [_plain(report) for report in self.history.epochs],
        }
        return {**values, "history": history}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainState":
        """The inverse of `as_dict`; raises KeyError, TypeError or ValueError for anything else."""
        given = values["history"]
        history = History(
            before=Evaluation.model_validate(given["before"]),
            best=Evaluation.model_validate(given["best"]),
            best_epoch=given["best_epoch"],
            epochs=tuple(
                EpochReport(**{**report, "evaluation": Evaluation.model_validate(report["evaluation"])})
                for report in given["epochs"]
            ),
        )
        return cls(**{**values, "history": history})


def _plain(report: EpochReport) -> dict[str, Any]:
    return {**asdict(report), "evaluation": report.evaluation.model_dump(mode="json")}
