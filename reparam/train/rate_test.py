"""The learning-rate range test: the rate grows exponentially from step to step, and the loss tells where it helps.

    rate_i = lowest * (highest / lowest)**(i / (steps - 1))
    s_i = (beta * m + (1 - beta) * loss_i) / (1 - beta**(i + 1)),   m: the uncorrected mean before, beta = 0.9

The test ends early when s_i exceeds 4 times the smallest s so far, or a loss is not finite. Two rates are read off: the
one where s falls most per factor of the rate, and a tenth of the one where s is smallest.

Source: Smith, arXiv:1506.01186; smoothing and both readings as in fastai's `lr_find`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from reparam.copying import copy_with
from reparam.errors import OptionError, TrainError
from reparam.recipe.schema import Frozen
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders
from reparam.train.evaluate import Evaluation
from reparam.train.loop import Trainer
from reparam.train.progress import Silent, StepReport

LOWEST, HIGHEST = 1e-7, 1.0
#: So many steps, or an epoch where that is shorter.
STEPS = 100
_BETA = 0.9
_DIVERGED = 4.0


class RateTest(Frozen):
    """What a range test saw: a loss for each rate that was tried, and what to make of it.

    `steepest` and `tenth_of_best` are None when the loss never fell. `ended` says why there was no further step.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    tenth_of_best: float | None
    ended: str


class RateSweep:
    """A range test under way: train a step at `rate`, hand its loss to `take`, until the test has `ended`.

    Raises:
        OptionError: fewer than 2 steps.
    """

    def __init__(self, *, steps: int = STEPS, lowest: float = LOWEST, highest: float = HIGHEST) -> None:
        if steps < 2:
            raise OptionError(f"a learning-rate range test wants at least 2 steps, got {steps}; lower batch_size")
        self.steps = steps
        self.ended = ""
        self._lowest, self._growth = lowest, highest / lowest
        self._rates: list[float] = []
        self._losses: list[float] = []
        self._smoothed: list[float] = []
        self._mean = 0.0

    @property
    def rate(self) -> float:
        """The rate of the next step."""
        return self._lowest * math.pow(self._growth, len(self._rates) / (self.steps - 1))

    def take(self, loss: float) -> None:
        """Notes the loss of a step that was trained at `rate`."""
        rate, count = self.rate, len(self._rates) + 1
        if not math.isfinite(loss):
            self.ended = f"the loss was not finite at {rate:.2g}"
            return
        self._mean = _BETA * self._mean + (1 - _BETA) * loss
        self._rates.append(rate)
        self._losses.append(loss)
        self._smoothed.append(self._mean / (1 - _BETA**count))
        if self._smoothed[-1] > _DIVERGED * min(self._smoothed):
            self.ended = f"the loss was over {_DIVERGED:g} times its best at {rate:.2g}"
        elif count == self.steps:
            self.ended = "the highest rate was reached"

    def result(self) -> RateTest:
        """What was seen so far."""
        steepest, tenth = _read_off(self._rates, self._smoothed, skip=self.steps // 10)
        return RateTest(
            rates=tuple(self._rates),
            losses=tuple(self._losses),
            smoothed=tuple(self._smoothed),
            steepest=steepest,
            tenth_of_best=tenth,
            ended=self.ended,
        )


def find_rate(
    step: Callable[[float], float], *, steps: int = STEPS, lowest: float = LOWEST, highest: float = HIGHEST
) -> RateTest:
    """Runs the range test.

    Args:
        step: trains one step at a rate and returns the loss that its gradient was taken of.
        steps: at most so many, at least 2.
        lowest: first rate, above 0.
        highest: last rate.
    Raises:
        OptionError: fewer than 2 steps.
    """
    sweep = RateSweep(steps=steps, lowest=lowest, highest=highest)
    while not sweep.ended:
        sweep.take(step(sweep.rate))
    return sweep.result()


def run_rate_test(
    model: nn.Module,
    loaders: Loaders,
    *,
    settings: TrainSettings,
    num_classes: int,
    device: torch.device,
    teacher: nn.Module | None = None,
    steps: int = STEPS,
) -> RateTest:
    """Runs the range test on a copy of a model, by a stage's settings and its whole loss; the model is left alone.

    Args:
        model: as the stage would begin with it.
        loaders: only the training images are used, at most one pass over them.
        settings: of the stage. Rates replace its schedule; layer decay holds.
        num_classes: outputs of the model.
        device: where to train.
        teacher: the dense original, or None.
        steps: at most so many, and never more than an epoch has.
    Raises:
        OptionError: settings that the model, timm or the device does not take, or fewer than 2 steps in an epoch.
        DataError: there are no images, or one that cannot be read.
    """
    driver = _Driver()
    trainer = Trainer(
        copy_with(model, parameter=torch.clone),
        loaders,
        settings=replace(settings, epochs=1, log_interval=1, model_ema=False),
        num_classes=num_classes,
        device=device,
        teacher=teacher,
        progress=driver,
    )
    sweep = RateSweep(steps=min(steps, trainer.schedule.steps))
    driver.begin(sweep, trainer.engine.optimizer)
    try:
        trainer.fit(before=_UNKNOWN)
    except _Ended:
        pass
    except TrainError:
        sweep.take(math.nan)
    return sweep.result()


#: Spares the evaluation before training, whose outcome nobody asks for.
_UNKNOWN = Evaluation(
    top1=0.0, top5=0.0, loss=0.0, images=0, top1_interval=(0.0, 0.0), images_per_second=0.0, device=""
)


class _Ended(Exception):
    """Leaves the training loop."""


class _Driver(Silent):
    """Takes the loss of each step and sets the rate of the next one."""

    def begin(self, sweep: RateSweep, optimizer: torch.optim.Optimizer) -> None:
        """Sets the rate of the first step."""
        self._sweep, self._optimizer = sweep, optimizer
        self._set_rate()

    def step(self, step: StepReport) -> None:
        """Raises _Ended when the test has."""
        self._sweep.take(step.loss)
        if self._sweep.ended:
            raise _Ended
        self._set_rate()

    def _set_rate(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._sweep.rate * group.get("lr_scale", 1.0)  # timm's name for a layer's share


def _read_off(rates: Sequence[float], smoothed: Sequence[float], *, skip: int) -> tuple[float | None, float | None]:
    """The steepest rate and a tenth of the best; the first `skip` means rest on too few losses to be read."""
    tried = range(skip, len(rates))
    best = min(tried, key=smoothed.__getitem__, default=skip)
    if best == skip:
        return None, None
    # Rates grow by one factor per step, so the fall per step is the fall per factor.
    steepest = min(range(skip, best), key=lambda i: smoothed[i + 1] - smoothed[i])
    return rates[steepest], rates[best] / 10
