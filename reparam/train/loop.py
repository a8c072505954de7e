"""The loop of one stage: epochs of steps, an evaluation after each, the best and the newest model saved as they come.

A loss that is not finite ends the run, at the latest when the next figures are read (`log_interval` steps), with the
last good checkpoint in place; so does Ctrl-C, for nothing is saved in
the middle of an epoch, and a save replaces the older one only when it is complete.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from reparam.errors import DataError, TrainError
from reparam.ops.routing import set_noise_
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders, read_batches
from reparam.train.engine import Engine, image_shares
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.meter import Figures, Meter, NotFiniteError
from reparam.train.objective import Objective, Terms
from reparam.train.parameters import make_optimizer
from reparam.train.progress import EpochReport, Progress, Silent, StepReport
from reparam.train.regime import apply_regime_, make_mixup
from reparam.train.routing import RoutingRecorder
from reparam.train.schedule import make_schedule

_NO_BATCH = "the training split gives no full batch; pass a smaller --batch-size"
MicroBatch = tuple[Tensor, Tensor]


class Save(Protocol):
    """Keeps a model as the newest one, and as the best one where it is that."""

    def __call__(self, model: nn.Module, *, is_best: bool) -> None:
        """Writes it, complete or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What training a stage brought. `best_epoch` counts from 1; 0 means that no epoch beat the model as it came."""

    before: Evaluation
    best: Evaluation
    best_epoch: int
    epochs: tuple[EpochReport, ...]


class Trainer:
    """Trains one model by one stage's settings.

    Args:
        model: changed in place; it ends with the weights of the last step, `save` was given the best ones.
        loaders: of training and evaluation.
        settings: of the stage.
        num_classes: outputs of the model.
        device: where to train.
        teacher: the dense original, or None.
        stage: name of the stage, for reports.
        save: called before the first epoch and after each one, on the main process only.
        progress: who listens.
    Raises:
        OptionError: settings that the model, timm or the device does not take.
    """

    def __init__(
        self,
        model: nn.Module,
        loaders: Loaders,
        *,
        settings: TrainSettings,
        num_classes: int,
        device: torch.device,
        teacher: nn.Module | None = None,
        stage: str = "train",
        save: Save | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not len(loaders.train):
            raise DataError(_NO_BATCH)
        self.model, self.loaders, self.settings = model.to(device), loaders, settings
        self.device, self.stage, self.save, self.progress = device, stage, save, progress or Silent()
        apply_regime_(model, settings)
        self.mixup = make_mixup(settings, num_classes=num_classes)
        self.objective = Objective(settings, teacher=teacher.to(device) if teacher else None)
        self.ema = ModelEmaV3(model, decay=settings.model_ema_decay, use_warmup=True) if settings.model_ema else None
        optimizer = make_optimizer(model, settings)
        self.schedule = make_schedule(optimizer, settings, micro_batches=len(loaders.train))
        self.engine = Engine(model, optimizer, settings, device=device)
        self.meter = Meter()
        self.epoch = self.updates = 0
        self._started = self._reported = 0.0

    @property
    def kept_model(self) -> nn.Module:
        """The model that is evaluated and saved: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.model

    def fit(self, *, before: Evaluation | None = None) -> Fit:
        """Trains all epochs; `before`, the evaluation of the model as it came, is made here when it is not given.

        Raises:
            TrainError: the loss is infinite or not a number.
            DataError: there are no images, or one that cannot be read.
        """
        set_seed(self.settings.seed)
        before = best = before or self._evaluate()
        best_epoch, reports = 0, []
        self._save(is_best=True)
        self._started = time.perf_counter()
        for epoch in range(1, self.schedule.epochs + 1):
            self.epoch = epoch
            report = self._run_epoch(best)
            if report.is_best:
                best, best_epoch = report.evaluation, report.epoch
            self._save(is_best=report.is_best)
            reports.append(report)
            self.progress.epoch_finished(report)
        return Fit(before=before, best=best, best_epoch=best_epoch, epochs=tuple(reports))

    def _run_epoch(self, best: Evaluation) -> EpochReport:
        start = time.perf_counter()
        figures, shares = self._train_epoch()
        seconds = time.perf_counter() - start
        evaluation = self._evaluate()
        lr = self.schedule.lr
        self.schedule.finish_epoch(self.epoch, evaluation.top1)
        return EpochReport(
            stage=self.stage,
            epoch=self.epoch,
            epochs=self.schedule.epochs,
            lr=lr,
            train_loss=figures.total,
            task_loss=figures.task,
            distill_loss=figures.distill,
            balance_loss=figures.balance,
            train_top1=figures.top1,
            images_per_second=figures.images / seconds,
            evaluation=evaluation,
            is_best=_is_better(evaluation, best),
            mult_share=shares,
        )

    def _train_epoch(self) -> tuple[Figures, dict[str, float]]:
        """One pass over the data; returns the epoch's figures and each layer's share of multiplied tokens."""
        self.meter.clear()
        self.model.train()
        self._reported = time.perf_counter()
        batches = read_batches(self.loaders.train, device=self.device)
        with RoutingRecorder(self.model) as recorder:
            for step, micro_batches in enumerate(_groups(batches, self.settings.grad_accum_steps), start=1):
                self._step(micro_batches, recorder)
                if step % self.settings.log_interval == 0 or step == self.schedule.steps:
                    self._report(step, recorder)
            figures = self._read(self.meter.epoch)
            if figures is None:
                raise DataError(_NO_BATCH)
            return figures, recorder.shares()

    def _step(self, micro_batches: list[MicroBatch], recorder: RoutingRecorder) -> None:
        """One step of the optimiser; a micro-batch weighs as much as it has images."""
        set_noise_(self.model, self.updates / (self.schedule.epochs * self.schedule.steps))
        for i, ((images, labels), share) in enumerate(
            zip(micro_batches, image_shares(micro_batches), strict=True), start=1
        ):
            with self.engine.accumulation(is_last=i == len(micro_batches)):
                terms = self._forward(images, labels, recorder)
                self.engine.backward(terms.total * share)
        self.engine.step()
        self.updates += 1
        self.schedule.finish_update(self.updates)
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)

    def _forward(self, images: Tensor, labels: Tensor, recorder: RoutingRecorder) -> Terms:
        """The objective of one micro-batch; its figures go to the meter without waiting for the device."""
        recorder.start_forward()
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        images, targets = self.mixup(images, labels) if self.mixup is not None else (images, labels)
        with self.engine.autocast():
            logits = self.engine.student(images)
            terms = self.objective(logits, images, targets, balance=recorder.balance_loss())
        correct = (logits.detach().argmax(dim=-1) == labels).sum()
        self.meter.add(terms, correct=correct, images=len(images), update=self.updates + 1)
        return terms

    def _report(self, step: int, recorder: RoutingRecorder) -> None:
        figures, now = self._read(self.meter.settle), time.perf_counter()
        if figures is None:
            return
        left = self.schedule.epochs * self.schedule.steps - self.updates
        self.progress.step(
            StepReport(
                epoch=self.epoch,
                epochs=self.schedule.epochs,
                step=step,
                steps=self.schedule.steps,
                loss=figures.total,
                top1=figures.top1,
                lr=self.schedule.lr,
                images_per_second=figures.images / (now - self._reported),
                seconds_left=(now - self._started) / self.updates * left,
                mult_share=recorder.shares(),
            )
        )
        self._reported = now

    def _read(self, figures: Callable[[], Figures | None]) -> Figures | None:
        try:
            return figures()
        except NotFiniteError as error:
            step = (error.update - 1) % self.schedule.steps + 1
            raise TrainError(
                f'stage "{self.stage}", epoch {self.epoch}, step {step}: the loss is {error.value}, so training cannot '
                f"go on. The checkpoints of the epochs before are intact. Lower lr ({self.settings.lr}), or clip the "
                f"gradient (clip_grad is {self.settings.clip_grad})."
            ) from error

    def _evaluate(self) -> Evaluation:
        return evaluate_model(self.kept_model, self.loaders.val, self.device)

    def _save(self, *, is_best: bool) -> None:
        if self.save is not None and self.engine.is_main:
            self.save(self.kept_model, is_best=is_best)


def _groups(batches: Iterable[MicroBatch], size: int) -> Iterator[list[MicroBatch]]:
    """Lists of `size` micro-batches; the last one may be shorter."""
    group: list[MicroBatch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _is_better(one: Evaluation, other: Evaluation) -> bool:
    return (one.top1, -one.loss) > (other.top1, -other.loss)
