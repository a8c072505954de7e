"""The learning-rate range test: the rate grows exponentially from step to step, and the loss tells where it helps.

    rate_i = lowest * (highest / lowest)**(i / (steps - 1))
    mean(z)_i = sum over j <= i of beta**(i - j) * z_j / sum over j <= i of beta**(i - j),   beta = 0.9
    s_i = mean(loss)_i,   r_i = exp(mean(log rate)_i)

The test ends early when s_i exceeds 4 times the smallest s so far, or a loss is not finite. Two rates are read off the
curve of s over r: where s falls most per factor of r, and a tenth of where s is smallest. A mean over the past lags, by
9 steps or a factor of 4 in the usual 100; that is why the rates get the same mean. On a quadratic the rate of the
steepest fall would else be beyond the limit of stability.

Source: Smith, arXiv:1506.01186; stop and readings as in fastai's `lr_find`; the mean of the rates is ours.
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
    """What a range test saw: a loss for each rate that was tried, the smoothed curve, and what to make of it.

    `steepest` and `tenth_of_best` are None when the loss never fell. `ended` says why there was no further step.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed_rates: tuple[float, ...]
    smoothed_losses: tuple[float, ...]
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
        self._smoothed_rates: list[float] = []
        self._smoothed_losses: list[float] = []
        self._mean_loss = self._mean_log = 0.0

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
        self._rates.append(rate)
        self._losses.append(loss)
        self._mean_loss = _BETA * self._mean_loss + (1 - _BETA) * loss
        self._mean_log = _BETA * self._mean_log + (1 - _BETA) * math.log(rate)
        weight = 1 - _BETA**count
        self._smoothed_rates.append(math.exp(self._mean_log / weight))
        self._smoothed_losses.append(self._mean_loss / weight)
        if self._smoothed_losses[-1] > _DIVERGED * min(self._smoothed_losses):
            self.ended = f"the loss was over {_DIVERGED:g} times its best at {rate:.2g}"
        elif count == self.steps:
            self.ended = "the highest rate was reached"

    def result(self) -> RateTest:
        """What was seen so far."""
        steepest, tenth = _read_off(self._smoothed_rates, self._smoothed_losses, skip=self.steps // 10)
        return RateTest(
            rates=tuple(self._rates),
            losses=tuple(self._losses),
            smoothed_rates=tuple(self._smoothed_rates),
            smoothed_losses=tuple(self._smoothed_losses),
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
    feature_points: Sequence[str] = (),
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
        feature_points: as for `Trainer`.
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
        feature_points=feature_points,
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


def _read_off(rates: Sequence[float], losses: Sequence[float], *, skip: int) -> tuple[float | None, float | None]:
    """The steepest rate and a tenth of the best; the first `skip` means rest on too few losses to be read."""
    best = min(range(skip, len(rates)), key=losses.__getitem__, default=skip)
    if best == skip:
        return None, None
    slopes = {i: (losses[i + 1] - losses[i]) / math.log(rates[i + 1] / rates[i]) for i in range(skip, best)}
    return rates[min(slopes, key=slopes.__getitem__)], rates[best] / 10
