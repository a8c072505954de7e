"""A whole training that the system ends by SIGKILL, again and again, anywhere: in a step, in a save, at its start."""

import multiprocessing
import os
import random
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from reparam.api.resume import Finetuning
from reparam.recipe.data_settings import DataSettings
from reparam.train.progress import Silent, StepReport
from tests.api.staged import assert_same_run, train
from tests.train.pico import draw_folder

#: Steps after which the process is killed; 0 is at its first words. A step that was told may not be kept yet, so these
#: twenty make between 24 and 41 of the 42 steps, of which the second stage has 21.
KILLS = [0] * 3 + [1] * 3 + [2] * 4 + [3] * 10
SETTINGS = {"epochs": 7}


class Tells(Silent):
    """Sends what it hears: words or a step."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def message(self, text: str) -> None:
        self.pipe.send_bytes(b"words")

    def step(self, step: StepReport) -> None:
        self.pipe.send_bytes(b"step")


def killed_after(steps: int, **training: Any) -> bool:
    """Trains in a process of its own and kills it once it has told so much; False if it came to its end before."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work() -> None:
        here.close()
        torch.set_num_threads(1)
        train(progress=Tells(there), **training)
        there.send_bytes(b"end")

    process = context.Process(target=work, daemon=True)
    process.start()
    there.close()
    heard = list[bytes]()
    while b"end" not in heard and (heard.count(b"step") < steps or not heard):
        heard.append(here.recv_bytes())
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return b"end" not in heard


@pytest.mark.slow
def test_a_training_that_was_killed_twenty_times_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "images")
    data = DataSettings(data_dir=str(root), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)
    training: dict[str, Any] = {"out": tmp_path / "run", "data": data, "resume": "auto", "settings": SETTINGS}
    for steps in random.Random(0).sample(KILLS, len(KILLS)):
        assert killed_after(steps, **training)
    record = Finetuning.model_validate_json((tmp_path / "run" / "finetune.json").read_bytes())
    assert [stage.name for stage in record.stages] == ["attention"]  # the last ones were killed in the second stage
    result = train(**training)
    straight = train(tmp_path / "straight", data, settings=SETTINGS)
    assert_same_run(result.out, straight.out)
    assert [stage.best.top1 for stage in result.stages] == [stage.best.top1 for stage in straight.stages]
