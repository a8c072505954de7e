"""Two gloo processes train like one whose batches are twice as large."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from reparam.api.convert import convert
from tests.train.pico import draw_folder

SCRIPT = """
import json, sys
import reparam
options = json.loads(sys.argv[1])
data = reparam.DataSettings(**options.pop("data"))
result = reparam.finetune(options.pop("source"), data=data, device="cpu", **options)
print(json.dumps([[stage.best.images, stage.best.mult_share] for stage in result.stages]))
"""
# Noise is what each process draws for itself, and there are no batch norms.
OVERRIDES = ["stage.1.rule.3.router_noise=0.0", "stage.1.rule.3.router_init=normal"]
SETTINGS = {"epochs": 2, "workers": 0, "lr": 3e-3, "log_interval": 2, "recovery_interval": 2, "crop_padding": 1}


def environment(process: int, processes: int, port: int) -> dict[str, str]:
    launch = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
    own = {name: str(value) for name, value in {**launch, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}.items()}
    path = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": path, **(own if processes > 1 else {"OMP_NUM_THREADS": "1"})}


def launch(processes: int, options: dict[str, object]) -> list[str]:
    """Runs the script in every process and returns what each printed last."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(options)],
            env=environment(i, processes, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate(timeout=240) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    return [out.splitlines()[-1] for out, _ in outputs]


def losses(run: Path) -> list[list[float]]:
    with (run / "summary.csv").open(newline="") as file:
        names = ("train_loss", "task_loss", "distill_loss", "eval_loss", "eval_top1")
        return [[float(row[name]) for name in names] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_follow_the_loss_curve_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    images = draw_folder(tmp_path / "images", val=5)
    kwargs = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    shape = {"num_classes": 3, "img_size": 8, "in_chans": 1, "model_kwargs": kwargs}
    made = convert("vit_tiny_patch16_224", "none", weights="none", out=tmp_path / "dense", **shape)
    assert made.plan.steps == ()
    common = {
        "source": "vit_tiny_patch16_224",
        "recipe": "shiftaddvit",
        "weights": str(tmp_path / "dense/model.safetensors"),
        "overrides": OVERRIDES,
        "data": {"data_dir": str(images), "mean": [0.5], "std": [0.5], "train_interpolation": "bilinear"},
        **shape,
    }
    printed = {}
    for processes in (1, 2):
        settings = {**SETTINGS, "batch_size": 12 // processes}
        printed[processes] = launch(
            processes, {**common, "settings": settings, "out": str(tmp_path / f"run-{processes}")}
        )
    one, two = (losses(tmp_path / f"run-{processes}") for processes in (1, 2))
    assert len(one) == len(two) == 4
    for row, other in zip(one, two, strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-4)
    # An odd number of evaluation images: each is counted once, and both processes know the result.
    assert printed[2][0] == printed[2][1]
    assert [images for images, _ in json.loads(printed[2][0])] == [15, 15]
