"""What a run tells while it goes on: frozen reports, and the protocol of whoever listens."""

from dataclasses import dataclass, field
from typing import Protocol

from reparam.train.evaluate import Evaluation, mean_share


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """A stage that is about to be trained.

    `before` is the converted, not yet trained model, `dense` the original. `target_share` maps each router to the share
    of tokens, in [0, 1], that it multiplies when both experts finish together.
    """

    name: str
    index: int
    stages: int
    epochs: int
    steps_per_epoch: int
    before: Evaluation
    dense: Evaluation | None = None
    target_share: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """The figures since the report before. Counts start at 1; `top1` in percent; `seconds_left` is the stage's."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    top1: float
    lr: float
    images_per_second: float
    seconds_left: float
    mult_share: dict[str, float] = field(default_factory=dict)

    @property
    def mean_mult_share(self) -> float | None:
        """The mean of `mult_share` over layers, or None without routers."""
        return mean_share(self.mult_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """A finished epoch. `epoch` starts at 1.

    `train_loss` is the weighted total, the others are unweighted, None is off.
    """

    stage: str
    epoch: int
    epochs: int
    lr: float
    train_loss: float
    task_loss: float
    distill_loss: float | None
    balance_loss: float | None
    train_top1: float
    images_per_second: float
    evaluation: Evaluation
    is_best: bool
    feature_loss: float | None = None
    mult_share: dict[str, float] = field(default_factory=dict)

    @property
    def mean_mult_share(self) -> float | None:
        """The mean of `mult_share` over layers, or None without routers."""
        return mean_share(self.mult_share)


class Progress(Protocol):
    """Who listens to a run; any object with these methods will do."""

    def message(self, text: str) -> None:
        """Something the user should know, such as which model is evaluated."""

    def stage_started(self, stage: StageReport) -> None:
        """The model is converted and evaluated; training begins."""

    def step(self, step: StepReport) -> None:
        """Figures of the steps since the last report."""

    def epoch_finished(self, epoch: EpochReport) -> None:
        """An epoch is trained, evaluated and saved."""


class Silent:
    """The listener that says nothing."""

    def message(self, text: str) -> None:
        """Says nothing."""

    def stage_started(self, stage: StageReport) -> None:
        """Says nothing."""

    def step(self, step: StepReport) -> None:
        """Says nothing."""

    def epoch_finished(self, epoch: EpochReport) -> None:
        """Says nothing."""


class Fanout:
    """Several listeners as one: each report goes to all of them, in the order given."""

    def __init__(self, *listeners: Progress) -> None:
        self._listeners = listeners

    def message(self, text: str) -> None:
        """Tells all."""
        for listener in self._listeners:
            listener.message(text)

    def stage_started(self, stage: StageReport) -> None:
        """Tells all."""
        for listener in self._listeners:
            listener.stage_started(stage)

    def step(self, step: StepReport) -> None:
        """Tells all."""
        for listener in self._listeners:
            listener.step(step)

    def epoch_finished(self, epoch: EpochReport) -> None:
        """Tells all."""
        for listener in self._listeners:
            listener.epoch_finished(epoch)
