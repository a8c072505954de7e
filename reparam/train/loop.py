"""The loop of one stage: epochs of steps, an evaluation after each, the best and the newest model saved as they come.

A loss or a gradient that is not finite ends the run before it reaches the weights, with the last good checkpoint in
place. So does Ctrl-C, between two steps where that is possible; the state that is kept then, and after each epoch,
lets the next run go on at the very step.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from reparam.errors import DataError, TrainError
from reparam.ops.routing import set_noise_
from reparam.processes import broadcast_from_main_, gather_over_processes, is_main, process_index, sum_over_processes_
from reparam.recipe.settings import TrainSettings
from reparam.train.bad_images import BadImages
from reparam.train.data import Loaders, read_batches
from reparam.train.engine import Engine, image_shares
from reparam.train.epochs import MicroBatch, open_epoch
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.interrupt import Interrupt
from reparam.train.meter import Figures, Meter
from reparam.train.nonfinite import first_nonfinite
from reparam.train.objective import Objective, Terms
from reparam.train.observed import share_observed_, share_ranges_
from reparam.train.parameters import make_optimizer
from reparam.train.progress import EpochReport, Progress, Silent, StepReport
from reparam.train.randomness import Draw, seed_generators
from reparam.train.regime import apply_regime_, make_mixup
from reparam.train.routing import RoutingRecorder, trains_routers
from reparam.train.schedule import make_schedule
from reparam.train.sharding import WholeModel, gathered, load_state_, shard_
from reparam.train.state import History, Keep, TrainState
from reparam.train.verdict import Finding, verdict

_NO_BATCH = "the training split gives no full batch; pass a smaller --batch-size"


class Save(Protocol):
    """Keeps a model as the newest one, and as the best one where it is that."""

    def __call__(self, model: nn.Module, *, is_best: bool) -> None:
        """Writes it, complete or not at all."""


class Trainer:
    """Trains one model by one stage's settings.

    Args:
        model: changed in place; it ends with the weights of the last step, `save` was given the best ones.
        loaders: of training and evaluation.
        settings: of the stage.
        num_classes: outputs of the model.
        device: where to train.
        teacher: the dense original, or None.
        feature_points: modules whose outputs are distilled from the teacher's; see `features.feature_points`.
        stage: name of the stage, for reports.
        save: called before the first epoch and after each one, on the main process only.
        keep: called with the state where a run can go on: before the first epoch, after each one, after each
            `recovery_interval` steps, and on Ctrl-C; on the main process only.
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
        feature_points: Sequence[str] = (),
        stage: str = "train",
        save: Save | None = None,
        keep: Keep | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not len(loaders.train):
            raise DataError(_NO_BATCH)
        self.model, self.loaders, self.settings = model.to(device), loaders, settings
        self.device, self.stage, self.progress = device, stage, progress or Silent()
        self.save, self.keep = (save, keep) if is_main() else (None, None)
        # Before the average is copied; without buffers in each forward, DDP does not send them at its start either.
        broadcast_from_main_([*model.parameters(), *model.buffers()])
        apply_regime_(model, settings)
        self.mixup = make_mixup(settings, num_classes=num_classes)
        self.objective = Objective(
            settings,
            teacher=teacher.to(device) if teacher else None,
            student=model,
            feature_points=feature_points,
        )
        self.ema = _average_of(model, settings) if settings.model_ema else None
        self._whole: WholeModel | None = None
        if settings.fsdp:
            self._whole = WholeModel(model)
            shard_(model)
            if self.ema is not None:
                shard_(self.ema.module)
        optimizer = make_optimizer(model, settings)
        self.schedule = make_schedule(optimizer, settings, micro_batches=len(loaders.train))
        self.engine = Engine(model, optimizer, settings, device=device)
        self.meter, self.recorder = Meter(), RoutingRecorder(model)
        self.epoch, self.step, self.updates = 1, 0, 0
        self.history: History | None = None
        # A new mixture sends every token to the multiply expert: as good as before, and nothing is saved yet.
        self._is_start_kept = not trains_routers(model)
        self._interrupt = Interrupt()
        self._started = self._reported = 0.0
        self._resumed_updates = 0
        self._bad_images = BadImages(loaders.train, most=settings.max_bad_images, progress=self.progress)

    @property
    def kept_model(self) -> nn.Module:
        """The model that is evaluated and saved: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.model

    def resume(self, state: TrainState) -> None:
        """Makes `fit` go on from a state of this stage.

        Raises:
            TrainError: the state is of a model or an optimiser with other parts.
        """
        try:
            for name, part in self._parts().items():
                load_state_(part, state.parts[name])
            self.meter.load_state(state.figures["meter"])
            self.recorder.load_state(state.figures["routing"] if is_main() else {})
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise TrainError(
                f'the saved state of stage "{self.stage}" does not fit what was built: {reason}'
            ) from error
        self.epoch, self.step, self.updates, self.history = state.epoch, state.step, state.updates, state.history
        self._resumed_updates = state.updates

    def fit(self, *, before: Evaluation | None = None) -> History:
        """Trains the epochs that are left; `before`, the evaluation of the model as it came, is made when not given.

        Raises:
            TrainError: the loss is infinite or not a number.
            DataError: there are no images, or one that cannot be read.
            KeyboardInterrupt: Ctrl-C; the state was kept.
        """
        if self.history is None:
            before = before or self._evaluate()
            self.history = History(before=before, best=before)
            self._save(is_best=True)
            self._keep()
        self._started = time.perf_counter()
        with self._interrupt:
            while self.epoch <= self.schedule.epochs:
                report = self._run_epoch(self.history.best)
                self.history = self.history.then(report)
                self.epoch, self.step = self.epoch + 1, 0
                self.meter.clear()
                self.recorder.clear()
                self._save(is_best=report.is_best)
                self._bad_images.tell()
                # Before the state is kept: what was told beyond a state is dropped when a run is resumed from it.
                self.progress.epoch_finished(report)
                self._keep()
                if self._interrupt.is_asked:
                    raise KeyboardInterrupt
        return self.history

    def _run_epoch(self, best: Evaluation) -> EpochReport:
        start, done = time.perf_counter(), self.step
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
            feature_loss=figures.feature,
            balance_loss=figures.balance,
            train_top1=figures.top1,
            images_per_second=figures.images * (1 - done / self.schedule.steps) / seconds,
            evaluation=evaluation,
            is_best=_is_better(evaluation, best) or (self.epoch == 1 and not self._is_start_kept),
            mult_share=shares,
        )

    def _train_epoch(self) -> tuple[Figures, dict[str, float]]:
        """The rest of a pass over the data; returns the figures and each layer's share of multiplied tokens."""
        self.model.train()
        self._reported = time.perf_counter()
        size = self.settings.grad_accum_steps
        done = min(self.step * size, len(self.loaders.train))  # the last step of an epoch may have fewer
        rest = open_epoch(self.loaders.train, self.epoch, done=done)
        with self.recorder, self.objective.recording():
            for micro_batches in self._until_asked(_groups(read_batches(rest, device=self.device), size)):
                self._step(micro_batches)
                if self.step % self.settings.log_interval == 0 or self.step == self.schedule.steps:
                    self._report()
                self._keep_on_the_way()
            figures = self.meter.epoch()
            if figures is None:
                raise DataError(_NO_BATCH)
            return figures, self.recorder.shares()

    def _until_asked(self, groups: Iterator[list[MicroBatch]]) -> Iterator[list[MicroBatch]]:
        """The steps' batches, until the loader is ended from outside."""
        with self._giving_way():
            yield from groups

    @contextmanager
    def _giving_way(self) -> Iterator[None]:
        """Around what reads a loader: a signal that ended its processes too is an interrupt, and not their failure."""
        try:
            yield
        except RuntimeError:
            if not self._interrupt.is_asked:
                raise
            self._keep()
            raise KeyboardInterrupt from None

    def _step(self, micro_batches: list[MicroBatch]) -> None:
        """One step of the optimiser; a micro-batch weighs as much as it has images."""
        seed_generators(self.settings.seed, Draw.STEP, self.updates, process_index())
        set_noise_(self.model, self.updates / (self.schedule.epochs * self.schedule.steps))
        losses = []
        for i, ((images, labels), share) in enumerate(
            zip(micro_batches, image_shares(micro_batches), strict=True), start=1
        ):
            with self.engine.accumulation(is_last=i == len(micro_batches)):
                terms = self._forward(images, labels)
                self.engine.backward(terms.total * share)
            losses.append(terms.total.detach() * share)
        loss, norm = torch.stack(losses).sum(), self.engine.clip()
        if not _is_finite(loss, norm):
            raise TrainError(self._not_finite(loss, norm, micro_batches))
        self.engine.step()
        self.step, self.updates = self.step + 1, self.updates + 1
        self.schedule.finish_update(self.updates)
        share_ranges_(self.model)
        if self.ema is not None:
            self.ema.update(self.model, step=self.updates)

    def _forward(self, images: Tensor, labels: Tensor) -> Terms:
        """The objective of one micro-batch; its figures go to the meter without waiting for the device."""
        self.recorder.start_forward()
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        images, targets = self.mixup(images, labels) if self.mixup is not None else (images, labels)
        with self.engine.autocast():
            logits = self.engine.student(images)
            terms = self.objective(logits, images, targets, balance=self.recorder.balance_loss())
        correct = (logits.detach().argmax(dim=-1) == labels).sum()
        self.meter.add(terms, correct=correct, images=len(images))
        return terms

    def _report(self) -> None:
        figures, now = self.meter.settle(), time.perf_counter()
        if figures is None:
            return
        here, left = self.updates - self._resumed_updates, self.schedule.epochs * self.schedule.steps - self.updates
        self.progress.step(
            StepReport(
                epoch=self.epoch,
                epochs=self.schedule.epochs,
                step=self.step,
                steps=self.schedule.steps,
                loss=figures.total,
                top1=figures.top1,
                lr=self.schedule.lr,
                images_per_second=figures.images / (now - self._reported),
                seconds_left=(now - self._started) / here * left,
                mult_share=self.recorder.shares(),
            )
        )
        self._reported = now

    def _not_finite(self, loss: Tensor, norm: Tensor | None, micro_batches: list[MicroBatch]) -> str:
        model = self._in_one_piece(self.model).to(self.device)
        causes = (self._cause(model, images, labels) for images, labels in micro_batches)
        found = Finding(
            loss=loss.item(),
            norm=None if norm is None else norm.item(),
            cause=next((cause for cause in causes if cause), None),
        )
        return (
            f'stage "{self.stage}", epoch {self.epoch}, step {self.step + 1}: {verdict(gather_over_processes(found))}. '
            f"The checkpoints so far are intact. Lower lr ({self.settings.lr}), or clip the gradient "
            f"(clip_grad is {self.settings.clip_grad})."
        )

    def _cause(self, model: nn.Module, images: Tensor, labels: Tensor) -> str | None:
        """What is first not finite when a micro-batch is run again, if anything is."""

        def loss(logits: Tensor) -> Tensor:
            # The balance of this process alone: the others may have found theirs without a forward.
            return self.objective(logits, images, labels, balance=self.recorder.balance_loss(of_all=False)).total

        # The objective hears the features of the model in training alone, and the recorder its routers.
        has_loss = model is self.model or not self.settings.feature_loss_weight
        self.recorder.start_forward()
        with self.engine.autocast():
            return first_nonfinite(model, images, loss=loss if has_loss else None)

    def _keep_on_the_way(self) -> None:
        """Keeps the state within an epoch: every so many steps, and before giving way to Ctrl-C."""
        interval = self.settings.recovery_interval
        is_due = interval and self.step % interval == 0 and self.step < self.schedule.steps
        if is_due or self._interrupt.is_asked:
            self._keep()
        if self._interrupt.is_asked:
            raise KeyboardInterrupt

    def _keep(self) -> None:
        """Hands the state over; every process takes part, for the figures of all are in it."""
        assert self.history is not None
        for model in dict.fromkeys((self.model, self.kept_model)):
            share_observed_(model)
        figures = {"meter": self.meter.state(), "routing": self.recorder.state()}
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        if self._whole is not None:
            parts = gathered(parts, is_wanted=self.keep is not None)
        if self.keep is not None:
            self.keep(
                TrainState(
                    stage=self.stage,
                    epoch=self.epoch,
                    step=self.step,
                    updates=self.updates,
                    history=self.history,
                    parts=parts,
                    figures=figures,
                )
            )

    def _parts(self) -> dict[str, Any]:
        """What has a state dictionary of its own."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.engine.optimizer, "schedule": self.schedule}
        if self.ema is not None:
            parts["ema"] = self.ema.module
        if self.engine.scaler is not None:
            parts["scaler"] = self.engine.scaler
        return parts

    def _evaluate(self) -> Evaluation:
        share_observed_(self.kept_model)
        with self._giving_way():
            return evaluate_model(self.kept_model, self.loaders.val, self.device)

    def _save(self, *, is_best: bool) -> None:
        model = self._in_one_piece(self.kept_model, is_wanted=self.save is not None)
        if self.save is not None:
            self.save(model, is_best=is_best)

    def _in_one_piece(self, model: nn.Module, *, is_wanted: bool = True) -> nn.Module:
        """A model that can be saved or run by one process alone; all must ask for it together."""
        return model if self._whole is None else self._whole.of(model, is_wanted=is_wanted)


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


def _average_of(model: nn.Module, settings: TrainSettings) -> ModelEmaV3:
    # Slices and whole buffers do not mix in an operation over all tensors at once.
    return ModelEmaV3(model, decay=settings.model_ema_decay, use_warmup=True, foreach=not settings.fsdp)


def _is_finite(loss: Tensor, norm: Tensor | None) -> bool:
    """Whether every process can go on; waits for the device, so that no bad step is made."""
    bad = ~loss.isfinite() if norm is None else ~(loss.isfinite() & norm.isfinite())
    return not bool(sum_over_processes_(bad.float()))


def _is_better(one: Evaluation, other: Evaluation) -> bool:
    return (one.top1, -one.loss) > (other.top1, -other.loss)
