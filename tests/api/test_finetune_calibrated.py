"""Calibration as the start of fine-tuning: a stage begins with layers that follow the dense ones."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

import reparam
from reparam.api.run import open_run
from reparam.api.stage import start_stage
from reparam.processes import process_index
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders
from reparam.train.progress import Silent
from tests.api.test_calibrate import RECIPE
from tests.pico import ATTENTION, images, recipe, vit
from tests.train.gang import together


class Notes(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_stage_begins_calibrated_on_its_training_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    reparam.convert(vit(), RECIPE, example_input=images(), calibration=images(64), out=run)
    batches = [(images(32, seed=seed), torch.zeros(32, dtype=torch.long)) for seed in range(4)]
    opened = open_run(run, DataSettings(), recipe=None, overrides=(), device=torch.device("cpu"), base=vit)
    notes = Notes()
    model = start_stage(opened, 0, TrainSettings(), Loaders(train=batches, val=batches), notes).eval()
    plain = opened.stage_model(0).eval()
    wanted = opened.dense.eval()(images(64, seed=9))
    assert (model(images(64, seed=9)) - wanted).norm() < (plain(images(64, seed=9)) - wanted).norm()
    assert notes.messages[0].startswith("calibrated 1/8 blocks.0.attn.qkv: output error")


def test_processes_begin_with_one_model_whatever_images_each_was_given(tmp_path: Path) -> None:
    run = tmp_path / "run"
    reparam.convert(vit(), RECIPE, example_input=images(), calibration=images(64), out=run)

    def start() -> dict[str, Any]:
        batches = [(images(32, seed=process_index()), torch.zeros(32, dtype=torch.long))]
        opened = open_run(run, DataSettings(), recipe=None, overrides=(), device=torch.device("cpu"), base=vit)
        settings = TrainSettings(fit_images=32, fit_steps=2)
        model = start_stage(opened, 0, settings, Loaders(train=batches, val=batches), Silent())
        return {name: value.numpy() for name, value in model.state_dict().items()}

    first, second = together(start)
    alone = start()
    assert first.keys() == second.keys() == alone.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert all(np.allclose(first[name], alone[name], rtol=1e-3, atol=1e-5) for name in first)


def test_attention_that_an_earlier_stage_has_trained_is_not_fitted_again(tmp_path: Path) -> None:
    attention = {**ATTENTION, "options": {"init": "calibrated"}}
    layers = {"match": {"kind": "linear"}, "operator": "shift_linear", "options": {"init": "calibrated"}}
    run = tmp_path / "run"
    reparam.convert(
        vit(), recipe([attention], [layers]), example_input=images(), calibration=images(32), stages=1, out=run
    )
    whole = tmp_path / "whole"
    reparam.convert(vit(), recipe([attention], [layers]), example_input=images(), calibration=images(32), out=whole)
    trained = reparam.load(run, base=vit)
    with torch.no_grad():
        trained.blocks[0].attn.core.threshold_q.fill_(0.25)
    opened = open_run(whole, DataSettings(), recipe=None, overrides=(), device=torch.device("cpu"), base=vit)
    reparam.save(trained, opened.stage_folder(0))
    batches = [(images(32, seed=seed), torch.zeros(32, dtype=torch.long)) for seed in range(4)]
    notes = Notes()
    model = start_stage(opened, 1, TrainSettings(), Loaders(train=batches, val=batches), notes)
    assert torch.equal(model.blocks[0].attn.core.threshold_q, trained.blocks[0].attn.core.threshold_q)
    assert not any("core" in message for message in notes.messages)
    assert notes.messages[0].startswith("calibrated 1/")
