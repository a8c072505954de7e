"""Two gloo processes train like one whose batches are twice as large, with copies of the model and with slices."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reparam
from reparam.api.convert import convert
from tests.train.pico import draw_folder

SCRIPT = """
import json, sys
import reparam
options = json.loads(sys.argv[1])
data = reparam.DataSettings(**options.pop("data"))
source, settings = options.pop("source"), options.pop("settings")
for out, change in options.pop("runs").items():
    result = reparam.finetune(source, data=data, device="cpu", settings={**settings, **change}, out=out, **options)
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


def launch(processes: int, options: dict[str, object]) -> list[list[str]]:
    """Runs the script in every process and returns the lines that each printed."""
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
    return [out.splitlines() for out, _ in outputs]


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
    copied, sharded = str(tmp_path / "copied"), str(tmp_path / "sharded")
    one = {"settings": {**SETTINGS, "batch_size": 12}, "runs": {str(tmp_path / "one"): {}}}
    two = {"settings": {**SETTINGS, "batch_size": 6}, "runs": {copied: {}, sharded: {"fsdp": True}}}
    launch(1, {**common, **one})
    first, second = launch(2, {**common, **two})
    expected = losses(tmp_path / "one")
    assert len(expected) == 4
    for run in (copied, sharded):
        for row, other in zip(expected, losses(Path(run)), strict=True):
            assert other == pytest.approx(row, rel=1e-4, abs=1e-4)
    # An odd number of evaluation images: each is counted once, and both processes know the result.
    assert first == second
    assert [[images for images, _ in json.loads(line)] for line in first] == [[15, 15], [15, 15]]
    # What is left looks the same, and the sharded model loads like any other.
    assert tree(Path(copied)) == tree(Path(sharded))
    logits = [reparam.load(run)(torch.ones(1, 1, 8, 8)) for run in (copied, sharded)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def tree(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))
