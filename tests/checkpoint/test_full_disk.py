"""A disk without room: the file is named, and the checkpoint of before is as it was."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from reparam.checkpoint.load import load
from reparam.checkpoint.recovery import newest_state, write_state
from reparam.checkpoint.save import save
from reparam.errors import CheckpointError
from reparam.train.evaluate import Evaluation
from reparam.train.metrics import MetricsLog
from reparam.train.progress import StageReport
from reparam.train.state import History, TrainState


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `size` bytes, as a disk would that has no more space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_without_room(model: nn.Module, folder: Path, *, size: int) -> str:
    with room_for(size), pytest.raises(CheckpointError) as caught:
        save(model, folder)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_file_that_found_no_room_is_named_and_the_old_checkpoint_loads(pico, convert, tmp_path, name):
    folder, model = tmp_path / "run", convert(pico(num_classes=300))
    save(model, folder)
    (folder / "summary.csv").write_text("epoch\n")
    before = contents(tmp_path)
    nn.init.zeros_(model.get_parameter("head.weight"))
    sizes = {file: (folder / file).stat().st_size for file in ("config.json", "model.safetensors")}
    size = sizes["config.json"] + 1 if name == "model.safetensors" else 100
    assert size < sizes["model.safetensors"]
    message = save_without_room(model, folder, size=size)
    assert message.endswith(
        "File too large. Free some space or choose another disk; what was there before is as it was."
    )
    if name == "model.safetensors":
        assert message.startswith(f"{folder / name}: cannot be written")
    else:
        assert "config.json: cannot be written" in message
    assert contents(tmp_path) == before
    assert load(folder).get_parameter("head.weight").abs().sum() > 0


def test_a_first_save_without_room_leaves_nothing(pico, convert, tmp_path):
    save_without_room(convert(pico()), tmp_path / "run", size=100)
    assert list(tmp_path.iterdir()) == []


def test_once_there_is_room_again_the_same_save_works(pico, convert, tmp_path):
    model = convert(pico())
    save_without_room(model, tmp_path / "run", size=100)
    save(model, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run").get_parameter("head.weight"), model.get_parameter("head.weight"))


def test_a_state_that_finds_no_room_is_named_and_the_older_one_is_still_the_newest(tmp_path):
    evaluation = Evaluation(top1=1, top5=1, loss=1, images=1, top1_interval=(0, 1), images_per_second=1, device="cpu")
    history = History(before=evaluation, best=evaluation)
    parts = {"model": {"weight": torch.zeros(10_000)}}
    states = [
        TrainState(stage="a", epoch=1, step=n, updates=n, history=history, parts=parts, figures={}) for n in (1, 2)
    ]
    write_state(tmp_path, states[0], keep=1)
    with room_for(10_000), pytest.raises(CheckpointError, match=r"a-updates-000000002.*: cannot be written: File too"):
        write_state(tmp_path, states[1], keep=1)
    newest = newest_state(tmp_path, "a", passed_over=lambda path: pytest.fail(str(path)))
    assert newest is not None
    assert newest.updates == 1


def test_a_metrics_log_that_finds_no_room_is_named(tmp_path):
    report = StageReport(
        name="a", index=0, stages=1, epochs=1, steps_per_epoch=1,
        before=Evaluation(top1=1, top5=1, loss=1, images=1, top1_interval=(0, 1), images_per_second=1, device="cpu"),
    )  # fmt: skip
    log = MetricsLog(tmp_path / "metrics.jsonl", stages=["a"])
    with room_for(10), pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written: File too large"):
        log.stage_started(report)
