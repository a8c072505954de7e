"""The learning-rate schedule: timm's, moved after every update rather than every epoch."""

import math
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2

from reparam.errors import OptionError
from reparam.recipe.settings import TrainSettings


class Schedule:
    """How long a stage is (`epochs` with cool-down, `steps` of the optimiser in each) and its learning rate now."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainSettings, *, steps: int) -> None:
        self.steps = steps
        self._optimizer = optimizer
        self._scheduler, self.epochs = None, settings.epochs
        if settings.epochs:
            self._scheduler, self.epochs = _timm_schedule(optimizer, settings, steps)

    @property
    def lr(self) -> float:
        """The mean rate over parameter groups, as timm prints it."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        return sum(rates) / len(rates)

    def finish_update(self, updates: int) -> None:
        """Sets the rate of the next update; `updates` were made."""
        if self._scheduler is not None:
            self._scheduler.step_update(updates)

    def finish_epoch(self, epoch: int, metric: float) -> None:
        """Tells schedules that wait for a plateau how the evaluation after `epoch` (from 1) went."""
        if self._scheduler is not None:
            self._scheduler.step(epoch, metric)

    def state_dict(self) -> dict[str, Any]:
        """What a schedule that waits for a plateau has seen."""
        return {} if self._scheduler is None else dict(self._scheduler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state)


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, *, micro_batches: int) -> Schedule:
    """Returns the schedule over epochs of `micro_batches`; raises OptionError for one that timm does not take."""
    return Schedule(optimizer, settings, steps=math.ceil(micro_batches / settings.grad_accum_steps))


def _timm_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int):  # type: ignore[no-untyped-def]  # timm names no type
    try:
        return create_scheduler_v2(
            optimizer,
            sched=settings.sched,
            num_epochs=settings.epochs,
            # A stage that is all warm-up would never reach its rate.
            warmup_epochs=min(settings.warmup_epochs, settings.epochs - 1),
            warmup_lr=settings.warmup_lr,
            min_lr=settings.min_lr,
            cooldown_epochs=settings.cooldown_epochs,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
    except (ValueError, AssertionError) as error:
        raise OptionError(f'sched = "{settings.sched}": {error or "timm does not take these settings"}') from error
