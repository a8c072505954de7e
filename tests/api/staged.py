"""What tests of a training in two stages share: a model of one block, settings of three steps an epoch, listeners."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from reparam.api.finetune import FinetuneResult, finetune
from reparam.recipe.data_settings import DataSettings
from reparam.train.progress import Silent, StepReport

MODEL = "vit_tiny_patch16_224"
SHAPE: dict[str, Any] = {
    "num_classes": 3,
    "img_size": 8,
    "in_chans": 1,
    "model_kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
SETTINGS = {"epochs": 2, "batch_size": 12, "workers": 0, "lr": 3e-3, "log_interval": 1, "recovery_interval": 1}
STEPS = 2 * 2 * 3  # two stages of two epochs of three steps


class Killed(Exception):
    """The process is gone."""


class Notes(Silent):
    """Keeps messages, and ends the process after so many steps."""

    def __init__(self, *, last: int = 0) -> None:
        self.messages: list[str] = []
        self.last, self.steps = last, 0

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, step: StepReport) -> None:
        self.steps += 1
        if self.steps == self.last:
            raise Killed


def train(
    out: Path, data: DataSettings, source: str | Path = MODEL, *, recipe: str | None = "shiftaddvit", **options: Any
) -> FinetuneResult:
    settings = SETTINGS | options.pop("settings", {})
    shape = SHAPE | {"weights": "none"} if source == MODEL else {}
    return finetune(source, recipe=recipe, data=data, out=out, settings=settings, device="cpu", **{**shape, **options})


def assert_same_run(one: Path, other: Path) -> None:
    folders = (".", "stage-0-attention", "stage-1-experts", "last")
    for folder in folders:
        a, b = (load_file(run / folder / "model.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), folder
