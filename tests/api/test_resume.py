"""`reparam.finetune(resume="auto")` and the gate between stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reparam.api.finetune import FinetuneResult, finetune
from reparam.api.resume import check_request
from reparam.checkpoint.record import read_record
from reparam.errors import CheckpointError, OptionError
from reparam.recipe.data_settings import DataSettings
from reparam.train.evaluate import Evaluation
from reparam.train.progress import Silent, StepReport
from tests.train.pico import draw_folder

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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    root = draw_folder(tmp_path_factory.mktemp("images"))
    return DataSettings(data_dir=str(root), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)


def train(
    out: Path, data: DataSettings, source: str | Path = MODEL, *, recipe: str | None = "shiftaddvit", **options: Any
) -> FinetuneResult:
    settings = SETTINGS | options.pop("settings", {})
    shape = SHAPE | {"weights": "none"} if source == MODEL else {}
    return finetune(source, recipe=recipe, data=data, out=out, settings=settings, device="cpu", **{**shape, **options})


@pytest.fixture(scope="module")
def straight(data: DataSettings, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    return train(tmp_path_factory.mktemp("runs") / "straight", data)


def assert_same_run(one: Path, other: Path) -> None:
    folders = (".", "stage-0-attention", "stage-1-experts", "last")
    for folder in folders:
        a, b = (load_file(run / folder / "model.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), folder


@pytest.mark.parametrize("last", [2, 6, 10])
def test_a_run_that_was_killed_in_either_stage_ends_as_if_it_was_not(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path, last: int
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, data, progress=Notes(last=last))
    notes = Notes()
    result = train(out, data, resume="auto", progress=notes)
    # The step that is told before it is kept is made again.
    assert notes.steps == STEPS - last + 1
    assert_same_run(out, straight.out)
    assert [(s.name, s.best_epoch, s.best.top1) for s in result.stages] == [
        (s.name, s.best_epoch, s.best.top1) for s in straight.stages
    ]
    summaries = [
        [line.rsplit(",", 1)[0] for line in (run / "summary.csv").read_text().splitlines()]
        for run in (out, straight.out)
    ]
    assert summaries[0] == summaries[1]


def test_a_finished_run_is_not_trained_again(data: DataSettings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = train(out, data, settings={"epochs": 1})
    notes = Notes()
    again = train(out, data, settings={"epochs": 1}, resume="auto", progress=notes)
    assert notes.steps == 0
    assert notes.messages == ["already trained: attention, experts"]
    assert again == first


def test_a_run_in_a_folder_is_resumed_without_its_recipe(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, data, progress=Notes(last=8))
    train(out, data, source=out, recipe=None, resume="auto")
    assert_same_run(out, straight.out)


def test_what_differs_is_named_when_a_resumption_is_refused(data: DataSettings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, data, progress=Notes(last=4))
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(CheckpointError) as caught:
        train(out, replace(data, crop_pct=0.9), resume="auto", settings={"seed": 7, "workers": 1})
    assert "data.crop_pct: was 1.0, is 0.9" in str(caught.value)
    assert "stages.attention.seed: was 42, is 7" in str(caught.value)
    assert "workers" not in str(caught.value)
    assert sorted(path.name for path in out.iterdir()) == before


def test_a_run_of_another_model_is_not_resumed(data: DataSettings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, data, settings={"epochs": 0})
    with pytest.raises(CheckpointError, match="made otherwise than vit_tiny_patch16_224"):
        train(out, data, resume="auto", model_kwargs={**SHAPE["model_kwargs"], "depth": 2})


def test_without_resume_a_run_begins_anew(data: DataSettings, straight: FinetuneResult, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, data, progress=Notes(last=8))
    notes = Notes()
    train(out, data, source=out, recipe=None, progress=notes)
    assert notes.steps == STEPS
    assert_same_run(out, straight.out)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations that say, in order: dense, then before and after the one epoch of each of two stages."""
    top1 = iter((90.0, 85.0, 88.0, 60.0, 70.0))

    def evaluate(*_: object) -> Evaluation:
        return Evaluation(
            top1=next(top1), top5=100.0, loss=1.0, images=18, top1_interval=(0, 100), images_per_second=1, device="cpu"
        )

    monkeypatch.setattr("reparam.api.finetune.evaluate_model", evaluate)
    monkeypatch.setattr("reparam.api.stage.evaluate_model", evaluate)
    monkeypatch.setattr("reparam.train.loop.evaluate_model", evaluate)


@pytest.mark.usefixtures("scripted")
def test_a_stage_below_the_gate_rolls_the_run_back_to_the_stage_before(data: DataSettings, tmp_path: Path) -> None:
    notes, out = Notes(), tmp_path / "run"
    result = train(out, data, settings={"epochs": 1, "stop_if_top1_drop_above": 5.0}, progress=notes)
    assert result.stopped == (
        'stage "experts" ends 20.00 points of top-1 below the dense model, more than the 5 that '
        "stop_if_top1_drop_above allows"
    )
    assert notes.messages[-1] == result.stopped
    assert result.kept == "attention"
    assert read_record(out).stages == 1
    assert (out / "model.safetensors").read_bytes() == (out / "stage-0-attention/model.safetensors").read_bytes()


@pytest.mark.usefixtures("scripted")
def test_when_the_first_stage_is_below_the_gate_the_run_stays_the_converted_model(
    data: DataSettings, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = train(out, data, settings={"epochs": 1, "stop_if_top1_drop_above": 1.5})
    assert [stage.name for stage in result.stages] == ["attention"]
    assert result.kept is None
    assert read_record(out).stages is None  # all of them
    assert not (out / "evaluate.json").exists()


@pytest.mark.usefixtures("scripted")
def test_a_drop_equal_to_the_gate_passes(data: DataSettings, tmp_path: Path) -> None:
    result = train(tmp_path / "run", data, settings={"epochs": 1, "stop_if_top1_drop_above": 20.0})
    assert result.stopped is None
    assert result.kept == "experts"


def test_another_number_of_processes_goes_on_with_as_many_images_in_a_step() -> None:
    def request(processes: int, batch_size: int, dataset: str = "") -> dict[str, Any]:
        stages = {"experts": {"batch_size": batch_size}}
        return {"data": {"dataset": dataset}, "stages": stages, "processes": processes}

    check_request(request(2, 6), request(1, 12), run=Path("run"))
    with pytest.raises(CheckpointError, match="batch_size, of all processes: was 12, is 6"):
        check_request(request(2, 6), request(1, 6), run=Path("run"))
    with pytest.raises(CheckpointError, match="processes: was 2, is 1"):
        check_request(request(2, 6, "wds/"), request(1, 12, "wds/"), run=Path("run"))


@pytest.mark.parametrize("source", ["model", "run"])
def test_processes_meet_as_often_whatever_a_late_one_finds_in_the_folder(
    data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    meetings: list[int] = []

    @contextmanager
    def main_first() -> Iterator[bool]:
        meetings[-1] += 1
        yield True

    monkeypatch.setattr("reparam.api.prepare.main_first", main_first)
    meetings.append(0)
    train(tmp_path / "first", data, settings={"epochs": 0})
    given = {"source": tmp_path / "first", "recipe": None} if source == "run" else {}
    for _ in range(2):
        meetings.append(0)
        train(tmp_path / "run", data, settings={"epochs": 0}, resume="auto", **given)
    assert meetings[1] == meetings[2] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_with": "wandb"}, "log_with: wandb is not installed"),
        ({"torchcompile": "induct"}, 'torchcompile: unknown compiler backend "induct"'),
        ({"in_memory": True}, "in_memory crops and flips whole batches"),
        ({"opt": "adamv"}, 'unknown optimiser "adamv"'),
    ],
    ids=["tracker", "compiler", "memory", "optimiser"],
)
def test_a_training_that_cannot_begin_leaves_what_was_to_be_resumed(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, data, progress=Notes(last=8))
    with pytest.raises(OptionError, match=message):
        train(out, data, source=out, recipe=None, settings=settings)
    train(out, data, resume="auto")
    assert_same_run(out, straight.out)
