"""What two processes observe while they train: what is evaluated, saved and resumed has seen the images of both."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.ops.fixed_point import FixedPoint
from reparam.processes import process_count, process_index
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders
from reparam.train.evaluate import evaluate_model
from reparam.train.loop import Trainer
from reparam.train.state import TrainState
from tests.train.gang import together
from tests.train.loops import CPU, PLAIN

STEPS = 3
COPIED = replace(PLAIN, epochs=2, batch_size=4, opt="sgd", lr=0.1, recovery_interval=1)
WAYS = {
    "copied": COPIED,
    "sharded": replace(COPIED, fsdp=True),
    "averaged": replace(COPIED, model_ema=True, model_ema_decay=0.5),
}


class Observing(nn.Module):
    """Observes its input, and one that its weights have a part in; counts its training forwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.grid = nn.BatchNorm2d(1), FixedPoint(8)
        self.hidden, self.later, self.head = nn.Linear(64, 8), FixedPoint(8), nn.Linear(8, 3)
        self.register_buffer("forwards", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.forwards += 1
        hidden = self.hidden(self.norm(self.grid(images)).flatten(1))
        logits: Tensor = self.head(self.later(hidden))
        return logits


def batches(process: int) -> list[tuple[Tensor, Tensor]]:
    """The second process's images are brighter, and some of each are far beyond the others."""
    generator = torch.Generator().manual_seed(process)
    images = [torch.randn(4, 1, 8, 8, generator=generator) * (1 + 9 * process) + process for _ in range(STEPS)]
    return [(one, torch.tensor([0, 1, 2, 0])) for one in images]


def train(settings: TrainSettings, state: TrainState | None = None) -> dict[str, Any]:
    own = batches(process_index())
    saved: list[nn.Module] = []
    states: list[TrainState] = []
    trainer = Trainer(
        Observing(),
        Loaders(train=own, val=own),
        settings=settings,
        num_classes=3,
        device=CPU,
        save=lambda model, *, is_best: saved.append(copy.deepcopy(model)),
        keep=lambda state: states.append(copy.deepcopy(state)),
    )
    if state is not None:
        trainer.resume(copy.deepcopy(state))
    history = trainer.fit()
    buffers = {name: buffer.tolist() for name, buffer in trainer.kept_model.named_buffers()}
    return {"buffers": buffers, "saved": saved, "states": states, "loss": history.epochs[-1].evaluation.loss}


@pytest.fixture(scope="module")
def both() -> list[dict[str, Any]]:
    def work() -> dict[str, Any]:
        found: dict[str, Any] = {way: train(settings) for way, settings in WAYS.items()}
        for way, settings in WAYS.items():
            told = [
                found[way]["states"][1] if process_index() == 0 else None
            ]  # after the first step of the first epoch
            torch.distributed.broadcast_object_list(told)
            found[f"{way}, resumed"] = train(settings, told[0])
        return found

    found = together(work)
    assert all(isinstance(process, dict) for process in found), found
    return found


@pytest.mark.parametrize("way", ["copied", "sharded"])
def test_norms_hold_the_mean_of_what_the_processes_saw(both: list[dict[str, Any]], way: str) -> None:
    means, variances = [], []
    for process in range(2):
        norm = nn.BatchNorm2d(1)
        for images, _ in batches(process) * COPIED.epochs:
            norm(images)
        means.append(norm.running_mean)
        variances.append(norm.running_var)
    for process in both:
        buffers = process[way]["buffers"]
        # The images pass a grid of 8 bits first.
        torch.testing.assert_close(torch.tensor(buffers["norm.running_mean"]), sum(means) / 2, rtol=0.02, atol=0.02)
        torch.testing.assert_close(torch.tensor(buffers["norm.running_var"]), sum(variances) / 2, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("way", ["copied", "sharded"])
def test_ranges_cover_what_any_process_saw(both: list[dict[str, Any]], way: str) -> None:
    grid = FixedPoint(8)
    for (bright, _), (dark, _) in zip(batches(0) * COPIED.epochs, batches(1) * COPIED.epochs, strict=True):
        grid(torch.cat([bright, dark]))
    for process in both:
        assert process[way]["buffers"]["grid.absmax"] == pytest.approx(grid.absmax.item())


@pytest.mark.parametrize("way", WAYS)
def test_all_processes_end_with_the_same_buffers(both: list[dict[str, Any]], way: str) -> None:
    first, second = (process[way]["buffers"] for process in both)
    assert first == second
    assert first["forwards"] != [0.0]


@pytest.mark.parametrize("way", WAYS)
def test_what_was_evaluated_is_the_model_that_is_saved(both: list[dict[str, Any]], way: str) -> None:
    model = both[0][way]["saved"][-1]
    assert process_count() == 1
    alone = evaluate_model(model, [*batches(0), *batches(1)], CPU)
    assert both[0][way]["loss"] == both[1][way]["loss"] == pytest.approx(alone.loss, rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_training_ends_with_the_bits_of_one_that_went_on(both: list[dict[str, Any]], way: str) -> None:
    went_on, resumed = (both[0][name]["saved"][-1].state_dict() for name in (way, f"{way}, resumed"))
    assert went_on.keys() == resumed.keys()
    assert all(torch.equal(went_on[name], resumed[name]) for name in went_on)
