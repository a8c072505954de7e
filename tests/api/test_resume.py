"""`reparam.finetune(resume="auto")`."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reparam
from reparam.api.finetune import FinetuneResult
from reparam.api.resume import check_request
from reparam.checkpoint import save as checkpoint_file
from reparam.errors import CheckpointError, OptionError
from reparam.recipe.data_settings import DataSettings
from tests.api.staged import SHAPE, STEPS, Killed, Notes, assert_same_run, train
from tests.train.pico import draw_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    root = draw_folder(tmp_path_factory.mktemp("images"))
    return DataSettings(data_dir=str(root), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)


@pytest.fixture(scope="module")
def straight(data: DataSettings, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    return train(tmp_path_factory.mktemp("runs") / "straight", data)


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


def test_another_number_of_processes_goes_on_with_as_many_images_in_a_step() -> None:
    def request(processes: int, batch_size: int, dataset: str = "") -> dict[str, Any]:
        stages = {"experts": {"batch_size": batch_size, "processes": processes}}
        return {"recipe": "shiftaddvit", "data": {"dataset": dataset}, "stages": stages}

    check_request(request(2, 6), request(1, 12), run=Path("run"))
    with pytest.raises(CheckpointError, match="batch_size, of all processes: was 12, is 6"):
        check_request(request(2, 6), request(1, 6), run=Path("run"))
    with pytest.raises(CheckpointError, match="processes: was 2, is 1"):
        check_request(request(2, 6, "wds/"), request(1, 12, "wds/"), run=Path("run"))


def test_a_training_on_record_with_one_number_of_processes_for_all_stages_goes_on(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path
) -> None:
    """As it was written before stages had numbers of their own, and by two processes."""
    out, notes = tmp_path / "run", Notes()
    with pytest.raises(Killed):
        train(out, data, progress=Notes(last=8))
    told = json.loads((out / "finetune.json").read_text())
    for settings in told["request"]["stages"].values():
        del settings["processes"]
        settings["batch_size"] = 6
    told["request"] |= {"processes": 2, "rules": {"attention": []}}
    (out / "finetune.json").write_text(json.dumps(told))
    train(out, data, resume="auto", progress=notes)
    assert notes.messages[0] == "begun by 2 processes, goes on with 1: its noise is another one"
    assert_same_run(out, straight.out)


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


@pytest.mark.parametrize("writes", [1, 3, 6])
def test_a_full_disc_ends_a_training_in_words_and_costs_nothing_that_was_saved(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The disc holds so many models; then room is made, and the same command goes on."""
    out, held = tmp_path / "run", list[Path]()
    whole = checkpoint_file.save_file

    def save_file(tensors: dict[str, Any], path: Path, **options: Any) -> None:
        if len(held) == writes:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(tensors, path, **options)
        held.append(path)

    monkeypatch.setattr(checkpoint_file, "save_file", save_file)
    with pytest.raises(
        CheckpointError, match="Free some space or choose another disk; what was there before is as it was"
    ):
        train(out, data)
    monkeypatch.undo()
    for config in out.rglob("config.json"):
        reparam.load(config.parent)
    assert not list(tmp_path.rglob("*.tmp"))
    train(out, data, resume="auto")
    assert_same_run(out, straight.out)
