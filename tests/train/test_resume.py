"""A run that is killed anywhere and resumed ends with the bits of the run that was never stopped."""

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from reparam.checkpoint.recovery import newest_state, write_state
from reparam.errors import TrainError
from reparam.ops.routing import Router
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import image_format, make_loaders
from reparam.train.evaluate import Evaluation
from reparam.train.loop import Trainer
from reparam.train.state import History
from tests.train.pico import pico_vit

CPU = torch.device("cpu")
#: Everything that draws random numbers or carries something from step to step.
RESTLESS = TrainSettings(
    epochs=3,
    batch_size=6,
    grad_accum_steps=2,
    workers=0,
    lr=3e-3,
    warmup_epochs=1,
    mixup=0.2,
    reprob=0.5,
    color_jitter=0.4,
    vflip=0.5,
    model_ema=True,
    model_ema_decay=0.9,
    distill_loss_weight=0.0,
    recovery_interval=1,
    log_interval=2,
)
UPDATES = 9  # of 36 images: three epochs of six micro-batches, two to a step
FORWARDS = 3 + 3 * (6 + 3)  # an evaluation of three batches first, then one after each epoch
KILLS = 24


class Killed(Exception):
    """The process is gone."""


class Clock:
    """Counts forwards of a model and of its moving average, and ends the process at one of them."""

    def __init__(self) -> None:
        self.calls, self.last = 0, -1

    def __deepcopy__(self, memo: object) -> "Clock":
        return self

    def tick(self) -> None:
        self.calls += 1
        if self.calls == self.last:
            raise Killed


class Restless(nn.Module):
    """A ViT with dropout and stochastic depth before a router and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = pico_vit(num_classes=16, proj_drop_rate=0.1, drop_path_rate=0.2)
        self.router, self.norm, self.head = Router(16, init="normal"), nn.BatchNorm1d(16), nn.Linear(16, 3)
        self.clock = Clock()

    def forward(self, images: Tensor) -> Tensor:
        self.clock.tick()
        features = self.vit(images)
        logits: Tensor = self.head(self.norm(features * self.router(features).gate))
        return logits


def trainer(data: DataSettings, settings: TrainSettings, folder: Path | None = None) -> Trainer:
    torch.manual_seed(0)
    loaders = make_loaders(data, settings, image=image_format(data, input_size=(1, 8, 8)), num_classes=3, device=CPU)
    keep = None if folder is None else lambda state: write_state(folder, state, keep=settings.checkpoint_hist)
    return Trainer(Restless(), loaders, settings=settings, num_classes=3, device=CPU, stage="pico", keep=keep)


def resumed(data: DataSettings, settings: TrainSettings, folder: Path) -> Trainer:
    made, state = trainer(data, settings, folder), newest_state(folder, "pico", passed_over=lambda path: None)
    if state is not None:
        made.resume(state)
    return made


def bits(made: Trainer) -> dict[str, Tensor]:
    """All that a run leaves: weights, moving average, moments of the optimiser."""
    assert made.ema is not None
    found = {f"model.{k}": v for k, v in made.model.state_dict().items()}
    found |= {f"ema.{k}": v for k, v in made.ema.module.state_dict().items()}
    for i, state in made.engine.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    return {name: value.clone() for name, value in found.items()}


def told(history: History) -> list[Any]:
    """The reports without their speeds, and what is best."""
    reports = [
        replace(report, images_per_second=0.0, evaluation=without_speed(report.evaluation)) for report in history.epochs
    ]
    return [history.best_epoch, history.best.top1, history.best.loss, *reports]


def without_speed(evaluation: Evaluation) -> Evaluation:
    return evaluation.model_copy(update={"images_per_second": 0.0, "model_images_per_second": None})


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.fixture(scope="module")
def straight(images: Path) -> tuple[dict[str, Tensor], list[Any]]:
    """The run that nobody stopped."""
    made = trainer(settings_data(images), RESTLESS)
    history = made.fit()
    assert made.updates == UPDATES
    return bits(made), told(history)


def settings_data(images: Path) -> DataSettings:
    return DataSettings(data_dir=str(images), mean=(0.5,), std=(0.5,), train_interpolation="random", crop_pct=1.0)


@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_in_any_forward_and_resumed_it_ends_with_the_same_bits(
    images: Path, straight: tuple[dict[str, Tensor], list[Any]], tmp_path: Path, kill: int
) -> None:
    draw = random.Random(kill)
    settings = replace(RESTLESS, recovery_interval=draw.choice((0, 1, 2)), workers=0, log_interval=draw.choice((1, 3)))
    made, data = trainer(settings_data(images), settings, tmp_path), settings_data(images)
    made.model.clock.last = draw.randint(1, FORWARDS)
    with pytest.raises(Killed):
        made.fit()
    again = resumed(data, settings, tmp_path)
    history = again.fit()
    assert_equal(bits(again), straight[0])
    assert told(history) == straight[1]


def test_it_can_be_killed_after_every_step(
    images: Path, straight: tuple[dict[str, Tensor], list[Any]], tmp_path: Path
) -> None:
    data, seen = settings_data(images), []
    while True:
        made = resumed(data, RESTLESS, tmp_path)
        seen.append(made.updates)
        made.model.clock.last = 6
        try:
            history = made.fit()
        except Killed:
            continue
        break
    assert len(set(seen)) > 5
    assert_equal(bits(made), straight[0])
    assert told(history) == straight[1]


def test_torn_states_are_passed_over_for_the_newest_intact_one(
    images: Path, straight: tuple[dict[str, Tensor], list[Any]], tmp_path: Path
) -> None:
    settings = replace(RESTLESS, checkpoint_hist=3)
    made = trainer(settings_data(images), settings, tmp_path)
    made.model.clock.last = 18
    with pytest.raises(Killed):
        made.fit()
    newest, second, third = sorted(tmp_path.iterdir(), reverse=True)
    damaged = bytearray((newest / "state.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "state.pt").write_bytes(damaged)
    (second / "state.pt").write_bytes((second / "state.pt").read_bytes()[:-100])
    passed: list[Path] = []
    state = newest_state(tmp_path, "pico", passed_over=passed.append)
    assert passed == [newest, second]
    assert state is not None
    assert third.name.endswith(f"{state.updates:09}")
    again = resumed(settings_data(images), settings, tmp_path)
    again.fit()
    assert_equal(bits(again), straight[0])


def test_killed_while_a_state_is_written_it_goes_on_from_the_one_before(
    images: Path, straight: tuple[dict[str, Tensor], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Path.write_bytes, 0

    def torn(file: Path, bits: Any) -> int:
        nonlocal count
        count += 1
        if count < 5:
            return write(file, bits)
        write(file, bits[:1000])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", torn)
        with pytest.raises(Killed):
            trainer(settings_data(images), RESTLESS, tmp_path).fit()
    again = resumed(settings_data(images), RESTLESS, tmp_path)
    assert again.updates == 3
    again.fit()
    assert_equal(bits(again), straight[0])


def test_the_number_of_loader_processes_changes_nothing(
    images: Path, straight: tuple[dict[str, Tensor], list[Any]]
) -> None:
    made = trainer(settings_data(images), replace(RESTLESS, workers=2))
    made.fit()
    assert_equal(bits(made), straight[0])


def test_another_seed_changes_the_run(images: Path, straight: tuple[dict[str, Tensor], list[Any]]) -> None:
    made = trainer(settings_data(images), replace(RESTLESS, seed=43))
    made.fit()
    assert not torch.equal(bits(made)["model.head.weight"], straight[0]["model.head.weight"])


def test_no_more_states_are_kept_than_asked_for(images: Path, tmp_path: Path) -> None:
    trainer(settings_data(images), replace(RESTLESS, checkpoint_hist=2), tmp_path).fit()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"pico-updates-{n:09}" for n in (8, 9)]


def test_a_state_of_another_model_is_refused(
    images: Path, make_vit: Callable[..., VisionTransformer], tmp_path: Path
) -> None:
    data = settings_data(images)
    trainer(data, replace(RESTLESS, epochs=1), tmp_path).fit()
    state = newest_state(tmp_path, "pico", passed_over=lambda path: None)
    assert state is not None
    loaders = make_loaders(data, RESTLESS, image=image_format(data, input_size=(1, 8, 8)), num_classes=3, device=CPU)
    other = Trainer(make_vit(), loaders, settings=RESTLESS, num_classes=3, device=CPU, stage="pico")
    with pytest.raises(TrainError, match='the saved state of stage "pico" does not fit'):
        other.resume(state)


def signalled(made: Trainer, *, step: int | None = None, evaluation: bool = False, each: int = 2) -> None:
    """Sends SIGINT in the forward of a step of `each` micro-batches, or in the first evaluation, and trains."""
    forwards = 0

    def send(module: nn.Module, _: object) -> None:
        nonlocal forwards
        forwards += module.training
        if forwards == (6 if evaluation else each * step) and module.training is not evaluation:
            handle.remove()
            other.remove()
            os.kill(os.getpid(), signal.SIGINT)

    handle = made.model.register_forward_pre_hook(send)
    other = made.kept_model.register_forward_pre_hook(send)
    with pytest.raises(KeyboardInterrupt):
        made.fit()


def test_an_interrupt_lets_the_step_end_and_keeps_the_state_there(
    images: Path, straight: tuple[dict[str, Tensor], list[Any]], tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)
    made = trainer(settings_data(images), replace(RESTLESS, recovery_interval=0), tmp_path)
    signalled(made, step=5)
    assert signal.getsignal(signal.SIGINT) is before
    again = resumed(settings_data(images), RESTLESS, tmp_path)
    assert (again.updates, again.epoch, again.step) == (5, 2, 2)
    again.fit()
    assert_equal(bits(again), straight[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_in_a_last_step_of_fewer_micro_batches_can_be_resumed(
    images: Path, tmp_path: Path, workers: int
) -> None:
    """Six micro-batches by fours: the second step of an epoch has two of them, and no more are to be skipped."""
    settings = replace(RESTLESS, grad_accum_steps=4, epochs=2, workers=workers)
    whole = trainer(settings_data(images), settings)
    history = whole.fit()
    made = trainer(settings_data(images), replace(settings, recovery_interval=0), tmp_path)
    signalled(made, step=2, each=3)
    again = resumed(settings_data(images), settings, tmp_path)
    assert (again.updates, again.epoch, again.step) == (2, 1, 2)
    assert told(again.fit()) == told(history)
    assert_equal(bits(again), bits(whole))


def test_an_interrupt_during_an_evaluation_ends_the_run_after_it(
    images: Path, straight: tuple[dict[str, Tensor], list[Any]], tmp_path: Path
) -> None:
    made = trainer(settings_data(images), replace(RESTLESS, epochs=1, warmup_epochs=0, recovery_interval=0), tmp_path)
    signalled(made, evaluation=True)
    state = newest_state(tmp_path, "pico", passed_over=lambda path: None)
    assert state is not None
    assert (state.updates, state.epoch, len(state.history.epochs)) == (3, 2, 1)


@pytest.mark.parametrize("split", ["train", "val"])
def test_loader_processes_that_a_signal_ends_too_are_an_interrupt_and_not_a_failure(
    images: Path, straight: tuple[dict[str, Tensor], list[Any]], tmp_path: Path, split: str
) -> None:
    made = trainer(settings_data(images), RESTLESS, tmp_path)

    class Ended:
        """Batches up to the fifth, then what torch says of a loader process that was ended."""

        def __init__(self, batches: Any) -> None:
            self.batches, self.count = batches, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.batches, name)

        def __len__(self) -> int:
            return len(self.batches)

        def __iter__(self) -> Any:
            for batch in self.batches:
                self.count += 1
                if self.count == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                    raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
                yield batch

    object.__setattr__(made.loaders, split, Ended(getattr(made.loaders, split)))
    with pytest.raises(KeyboardInterrupt):
        made.fit()
    again = resumed(settings_data(images), RESTLESS, tmp_path)
    assert again.updates == (2 if split == "train" else 3)
    again.fit()
    assert_equal(bits(again), straight[0])
