import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import reparam
from reparam.calibrate.records import LayerFit, Uncalibrated
from reparam_cli.options import default_out
from tests.cli.conftest import RunCli
from tests.cli.stand_ins import plan_of


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the command line asked of `reparam.convert` or `reparam.plan`, and under `verb` which of the two."""
    arguments: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)

    def convert(model: str, recipe: str, **options: Any) -> object:
        arguments.update(options, verb="convert", model=model, recipe=recipe)
        return SimpleNamespace(plan=plan_of(), calibration=None)

    def plan(model: str, recipe: str, **options: Any) -> object:
        arguments.update(options, verb="plan", model=model, recipe=recipe)
        return plan_of()

    monkeypatch.setitem(vars(reparam), "convert", convert)
    monkeypatch.setitem(vars(reparam), "plan", plan)
    return arguments


def test_the_result_is_saved_under_runs_by_default(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("convert", "deit_tiny", "--recipe", "shiftaddvit")
    assert answer.code == 0
    assert asked["out"] == Path("runs/deit_tiny-shiftaddvit")
    assert asked["weights"] == "hub"
    assert answer.out.endswith("saved to runs/deit_tiny-shiftaddvit\n")


def test_options_reach_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = "convert m --recipe r --weights none --out here --stage 0 --allow-partial --num-classes 7 --set a=1"
    assert run_cli(*line.split()).code == 0
    wanted = {"weights": "none", "out": Path("here"), "stages": 1, "allow_partial": True, "num_classes": 7}
    assert {key: asked[key] for key in wanted} == wanted
    assert asked["overrides"] == ["a=1"]


def test_pictures_to_calibrate_on_are_a_folder_or_a_data_set(run_cli: RunCli, asked: dict[str, Any]) -> None:
    def ask(options: str) -> Any:
        return run_cli("convert", "m", "--recipe", "r", *options.split())

    assert "pics: no such folder" in ask("--calibration-dir pics").err
    Path("pics").mkdir()
    assert ask("--calibration-dir pics --calibration-images 64 --mean 0.5").code == 0
    assert asked["calibration"] == reparam.DataSettings(data_dir="pics", mean=(0.5,))
    assert asked["calibration_images"] == 64
    assert ask("--dataset hfds/cifar10").code == 0
    assert asked["calibration"] == reparam.DataSettings(dataset="hfds/cifar10")
    assert ask("").code == 0
    assert asked["calibration"] is None
    both = ask("--calibration-dir pics --data-dir other")
    assert both.code == 2
    assert "leave one out" in both.err


def test_progress_and_errors_of_the_layers_are_shown(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = LayerFit(path="blocks.0.fc", error=0.05, rounded_error=0.2, damping=0.01, dead_inputs=0)
    left = Uncalibrated(path="blocks.1.fc", reason="it did not run on the calibration images")
    found = reparam.Calibration(images=32, layers=(fit,), uncalibrated=(left,))

    def convert(model: str, recipe: str, *, progress: Callable[[object], None], **_: Any) -> object:
        progress(reparam.CalibrationStep(fit=fit, number=1, layers=1))
        return SimpleNamespace(plan=plan_of(), calibration=found)

    monkeypatch.setitem(vars(reparam), "convert", convert)
    answer = run_cli("convert", "m", "--recipe", "r", "--calibration-dir", ".")
    assert "calibrated 1/1 blocks.0.fc: output error 5.0%, uncalibrated 20.0%" in answer.err
    assert "output error on 32 images" in answer.out
    assert "blocks.1.fc: not calibrated, it did not run on the calibration images" in answer.out
    spoken = json.loads(run_cli("convert", "m", "--recipe", "r", "--calibration-dir", ".", "--json").out)
    assert reparam.Calibration.model_validate(spoken["calibration"]) == found


def test_dry_run_is_the_plan(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = ["m", "--recipe", "r", "--stage", "1", "--img-size", "32", "--model-kwargs", "depth=2"]
    dry = run_cli("convert", *line, "--dry-run")
    assert asked["verb"] == "plan"
    assert (asked["stages"], asked["img_size"], asked["model_kwargs"]) == (2, 32, {"depth": 2})
    assert dry.out == run_cli("plan", *line).out


def test_json_names_the_folder_and_holds_the_plan(run_cli: RunCli, asked: dict[str, Any]) -> None:
    found = json.loads(run_cli("convert", "m", "--recipe", "r", "--out", "here", "--json").out)
    assert found["out"] == "here"
    assert reparam.Plan.model_validate(found["plan"]) == plan_of()


def test_whether_anything_else_may_be_replaced_is_the_librarys_to_say(run_cli: RunCli, asked: dict[str, Any]) -> None:
    Path("here").mkdir()
    Path("here/config.json").write_text("{}")
    assert run_cli("convert", "m", "--recipe", "r", "--out", "here").code == 0


@pytest.mark.parametrize(
    ("model", "recipe", "folder"),
    [
        pytest.param("deit_tiny", "shiftaddvit", "runs/deit_tiny-shiftaddvit", id="names"),
        pytest.param("vit_tiny_patch16_224.augreg_in21k", "x", "runs/vit_tiny_patch16_224.augreg_in21k-x", id="tag"),
        pytest.param("hf-hub:timm/resnet18", "x", "runs/hf-hub-timm-resnet18-x", id="hub"),
        pytest.param("../my.py:build", "mine/quick.toml", "runs/my.py-build-quick", id="files"),
    ],
)
def test_the_default_folder_is_one_safe_name(model: str, recipe: str, folder: str) -> None:
    assert default_out(model, recipe) == Path(folder)
