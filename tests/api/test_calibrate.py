"""Calibration as users ask for it: from pictures in a folder, kept beside the run, resumed, and refused in words."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import reparam
from reparam.api.calibrate import CALIBRATION_NAME
from reparam.errors import DataError, OptionError
from reparam.models.cifar_resnet import CifarResNet
from reparam.reporting.figure import can_draw
from tests.pico import images, vit

PICO = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
NAMED = {"weights": "none", "img_size": 16, "num_classes": 3, "model_kwargs": PICO}
RECIPE = "shift-ptq-calibrated"


def pictures(folder: Path, count: int) -> reparam.DataSettings:
    folder.mkdir()
    for number, values in enumerate(images(count).mul(60).add(128).clamp(0, 255).byte()):
        Image.fromarray(values.permute(1, 2, 0).numpy()).save(folder / f"{number:03d}.png")
    return reparam.DataSettings(data_dir=str(folder))


def test_pictures_without_labels_calibrate_a_named_model_and_the_run_says_how_well(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pictures", 40)
    torch.manual_seed(0)
    made = reparam.convert("vit_tiny_patch16_224", RECIPE, calibration=data, out=tmp_path / "run", **NAMED)
    assert made.calibration is not None
    assert made.calibration.images == 40
    written = json.loads((tmp_path / "run" / CALIBRATION_NAME).read_text(encoding="utf-8"))
    assert reparam.Calibration.model_validate(written) == made.calibration
    assert (tmp_path / "run" / "calibration.png").is_file() == can_draw()
    assert (tmp_path / "run" / "calibration.svg").is_file() == can_draw()
    assert torch.equal(reparam.load(tmp_path / "run")(images()), made.model.eval()(images()))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pictures", "run"]


def test_fewer_pictures_than_asked_for_are_all_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = pictures(tmp_path / "pictures", 33)
    with caplog.at_level(logging.INFO, logger="reparam"):
        made = reparam.convert("vit_tiny_patch16_224", RECIPE, calibration=data, calibration_images=64, **NAMED)
    assert made.calibration is not None
    assert made.calibration.images == 33
    assert "holds 33 images, fewer than the 64 asked for; all are used" in caplog.text


def test_they_are_spread_over_all_classes(tmp_path: Path) -> None:
    """A folder is sorted by class: its first images would all be of one."""
    (tmp_path / "all").mkdir()
    for name in ("a", "b"):
        pictures(tmp_path / "all" / name, 40)
    (tmp_path / "all/a/000.png").write_bytes(b"no image")  # the first one of all is always taken
    data = reparam.DataSettings(data_dir=str(tmp_path / "all"))
    with pytest.raises(DataError, match=r"000\.png: cannot be read as an image"):
        reparam.convert("vit_tiny_patch16_224", RECIPE, calibration=data, calibration_images=32, **NAMED)
    pictures(tmp_path / "c", 1)
    (tmp_path / "c/000.png").replace(tmp_path / "all/a/000.png")
    (tmp_path / "all/b/000.png").write_bytes(b"no image")  # the 41st of 80, and the 17th of 32
    with pytest.raises(DataError, match=r"b/000\.png: cannot be read as an image"):
        reparam.convert("vit_tiny_patch16_224", RECIPE, calibration=data, calibration_images=32, **NAMED)


def test_too_few_pictures_leave_nothing_behind(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pictures", 7)
    with pytest.raises(DataError, match=r"pictures: wanted at least 32 images to calibrate on, found 7"):
        reparam.convert("vit_tiny_patch16_224", RECIPE, calibration=data, out=tmp_path / "run", **NAMED)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pictures"]


def test_a_recipe_that_calibrates_needs_images_and_says_how_to_give_them() -> None:
    with pytest.raises(OptionError, match=r"name a folder of pictures with reparam convert --calibration-dir DIR"):
        reparam.convert(vit(), RECIPE, example_input=images())


def test_attention_is_calibrated_where_the_recipe_says_so(tmp_path: Path) -> None:
    options = ["stage.0.rule.0.init=calibrated", "stage.0.rule.0.scales=learned"]
    asked = {"example_input": images(), "overrides": options, "calibration": images(64), "out": tmp_path / "run"}
    made = reparam.convert(vit(), "ladder-dwconv", **asked)
    assert made.calibration is not None
    assert [fit.path for fit in made.calibration.layers] == ["blocks.0.attn.core", "blocks.1.attn.core"]
    assert all(fit.error < fit.rounded_error for fit in made.calibration.layers)
    assert torch.equal(reparam.load(tmp_path / "run", base=vit)(images()), made.model.eval()(images()))
    with pytest.raises(OptionError, match=r'"blocks\.0\.attn" is to start from images'):
        reparam.convert(vit(), "ladder-dwconv", example_input=images(), overrides=options)


def test_images_that_nothing_asks_for_are_refused() -> None:
    with pytest.raises(OptionError, match='recipe "shift-ptq" calibrates nothing here'):
        reparam.convert(vit(), "shift-ptq", example_input=images(), calibration=images(32))


def test_a_number_of_images_without_any_to_count_is_refused() -> None:
    with pytest.raises(OptionError, match="calibration_images 64: no data set is named to take them from"):
        reparam.convert(vit(), "shift-ptq", example_input=images(), calibration_images=64)


def test_tuning_without_a_calibration_is_refused() -> None:
    with pytest.raises(OptionError, match='recipe "shift-ptq" calibrates nothing, and blocks are tuned on calibration'):
        reparam.convert(vit(), "shift-ptq", example_input=images(), tune_steps=10)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"calibration": "pictures"}, OptionError, r"wanted images \(N, C, H, W\) or reparam.DataSettings.*got a str"),
        ({"calibration": images(32)[:, :1]}, DataError, r"does not run on images \(32, 1, 16, 16\) of torch.float32: "),
        ({"calibration": images(32).half()}, DataError, r"does not run on images \(32, 3, 16, 16\) of torch.float16: "),
        ({"calibration": reparam.DataSettings(data_dir="x"), "calibration_images": 0}, OptionError, "at least 32"),
        ({"calibration": images(32), "calibration_images": 32}, OptionError, "are given, and all 32 are taken"),
        ({"calibration": images(32), "tune_steps": -1}, OptionError, "tune_steps -1: wanted 0 or more"),
    ],
    ids=["kind", "channels", "type", "count", "count-of-given", "steps"],
)
def test_a_calibration_that_cannot_be_is_one_sentence(
    asked: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        reparam.convert(vit(), RECIPE, example_input=images(), out=tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def test_blocks_are_tuned_when_asked_for_and_a_loaded_run_has_it_all(tmp_path: Path) -> None:
    asked = {"example_input": images(), "calibration": images(32), "out": tmp_path / "run", "tune_steps": 5}
    made = reparam.convert(vit(), RECIPE, **asked)
    assert made.calibration is not None
    assert [fit.path for fit in made.calibration.blocks] == ["blocks.0", "blocks.1"]
    assert torch.equal(reparam.load(tmp_path / "run", base=vit)(images()), made.model.eval()(images()))


def test_a_stopped_conversion_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(step: reparam.CalibrationStep) -> None:
        if step.number == 3:
            raise Stopped

    pictures_of = images(32)
    with pytest.raises(Stopped):
        reparam.convert(
            vit(), RECIPE, example_input=images(), calibration=pictures_of, progress=stop, out=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
    (kept,) = tmp_path.iterdir()
    times = {file.name: file.stat().st_mtime_ns for file in kept.iterdir()}
    assert len(times) == 3

    def look(step: reparam.CalibrationStep) -> None:
        assert {name: (kept / name).stat().st_mtime_ns for name in times} == times

    made = reparam.convert(
        vit(), RECIPE, example_input=images(), calibration=pictures_of, progress=look, out=tmp_path / "run"
    )
    whole = reparam.convert(vit(), RECIPE, example_input=images(), calibration=pictures_of)
    assert torch.equal(made.model.eval()(images()), whole.model.eval()(images()))
    assert not kept.exists()


def test_dead_inputs_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="reparam"):
        reparam.convert(
            torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval(),
            RECIPE,
            example_input=torch.randn(2, 4),
            calibration=torch.randn(32, 4) * torch.tensor([1.0, 1.0, 0.0, 1.0]),
        )
    assert "inputs that were 0 for every image, whose weights are rounded as they are: 1 of 0" in caplog.text


def test_recipes_without_data_correct_biases_and_say_how_many(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    dense = CifarResNet(1, num_classes=3).eval()
    with caplog.at_level(logging.INFO, logger="reparam"):
        made = reparam.convert(dense, "shift-ptq", example_input=images())
    assert "biases corrected from batch norms: 6 of 6 layers" in caplog.text
    assert not torch.equal(made.model.get_buffer("layer1.0.bn1.running_mean"), dense.layer1[0].bn1.running_mean)
    plain = reparam.convert(
        dense, "shift-ptq", example_input=images(), overrides=["stage.0.rule.2.bias_correction=false"]
    )
    assert torch.equal(plain.model.get_buffer("layer1.0.bn1.running_mean"), dense.layer1[0].bn1.running_mean)
