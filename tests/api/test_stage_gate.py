"""The gate between stages: what is trained no further, and which model the run is then."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reparam.checkpoint.record import read_record
from reparam.recipe.data_settings import DataSettings
from reparam.train.evaluate import Evaluation
from tests.api.staged import Notes, train

Script = Callable[..., None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Says what the next evaluations find: of the dense model, then before and after the one epoch of each stage."""
    left: list[float] = []

    def evaluate(*_: object) -> Evaluation:
        top1 = left.pop(0)
        return Evaluation(
            top1=top1, top5=100.0, loss=1.0, images=18, top1_interval=(0, 100), images_per_second=1, device="cpu"
        )

    for where in ("reparam.api.finetune", "reparam.api.stage", "reparam.train.loop"):
        monkeypatch.setattr(f"{where}.evaluate_model", evaluate)
    return lambda *top1: left.extend(top1)


def gated(points: float | None) -> dict[str, object]:
    return {"epochs": 1, "stop_if_top1_drop_above": points}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_stage_below_the_gate_rolls_the_run_back_to_the_stage_before(
    data: DataSettings, tmp_path: Path, script: Script
) -> None:
    notes, out = Notes(), tmp_path / "run"
    script(90.0, 85.0, 88.0, 60.0, 70.0)
    result = train(out, data, settings=gated(5.0), progress=notes)
    assert result.stopped == (
        'stage "experts" ends 20.00 points of top-1 below the dense model, more than the 5 that '
        "stop_if_top1_drop_above allows"
    )
    assert notes.messages[-2:] == [result.stopped, 'the run is now the model of stage "attention"']
    assert result.kept == "attention"
    assert read_record(out).stages == 1
    assert weights(out) == weights(out / "stage-0-attention")


def test_when_the_first_stage_is_below_the_gate_the_run_stays_the_converted_model(
    data: DataSettings, tmp_path: Path, script: Script
) -> None:
    notes, out = Notes(), tmp_path / "run"
    script(90.0, 85.0, 88.0)
    result = train(out, data, settings=gated(1.5), progress=notes)
    assert [stage.name for stage in result.stages] == ["attention"]
    assert result.kept is None
    assert notes.messages[-1] == "the run stays the converted model"
    assert read_record(out).stages is None  # all of them
    assert not (out / "evaluate.json").exists()


def test_a_drop_equal_to_the_gate_passes(data: DataSettings, tmp_path: Path, script: Script) -> None:
    script(90.0, 85.0, 88.0, 60.0, 70.0)
    result = train(tmp_path / "run", data, settings=gated(20.0))
    assert result.stopped is None
    assert result.kept == "experts"


@pytest.mark.parametrize(("points", "found"), [(1.5, (90, 85, 88)), (5.0, (90, 85, 88, 60, 70))])
def test_a_run_that_its_gate_has_stopped_goes_no_further_when_it_is_resumed(
    data: DataSettings, tmp_path: Path, script: Script, points: float, found: tuple[float, ...]
) -> None:
    notes, out = Notes(), tmp_path / "run"
    script(*found)
    first = train(out, data, settings=gated(points))
    again = train(out, data, settings=gated(points), resume="auto", progress=notes)
    assert notes.steps == 0
    assert again == first
    assert again.stopped
    assert (out / "stage-1-experts").exists() == (len(again.stages) == 2)


def test_a_stage_trained_alone_rolls_back_to_one_that_was_trained_alone_before_it(
    data: DataSettings, tmp_path: Path, script: Script
) -> None:
    out = tmp_path / "run"
    script(90.0, 85.0, 88.0)
    assert train(out, data, stage=0, settings=gated(5.0)).kept is None  # a run takes the last stage's model
    script(90.0, 60.0, 70.0)
    result = train(out, data, out, recipe=None, stage=1, settings=gated(5.0))
    assert result.kept == "attention"
    assert [stage.name for stage in result.stages] == ["experts"]
    assert weights(out) == weights(out / "stage-0-attention")
    assert json.loads((out / "evaluate.json").read_text())["top1"] == 88.0


def test_a_stage_that_fell_below_its_own_gate_is_nothing_to_roll_back_to(
    data: DataSettings, tmp_path: Path, script: Script
) -> None:
    out = tmp_path / "run"
    script(90.0, 85.0, 88.0)
    assert train(out, data, stage=0, settings=gated(1.5)).stopped
    converted = weights(out)
    script(90.0, 60.0, 70.0)
    result = train(out, data, out, recipe=None, stage=1, settings=gated(5.0))
    assert (result.kept, weights(out)) == (None, converted)


def test_a_trained_run_whose_first_stage_fails_when_trained_again_stays_what_it_was_and_says_so(
    data: DataSettings, tmp_path: Path, script: Script
) -> None:
    notes, out = Notes(), tmp_path / "run"
    script(90.0, 85.0, 88.0, 60.0, 70.0)
    train(out, data, settings=gated(None))
    before = weights(out)
    script(90.0, 40.0, 50.0)
    result = train(out, data, out, recipe=None, settings=gated(5.0), progress=notes)
    assert result.stopped is not None
    assert result.kept == "experts"
    assert notes.messages[-1] == 'the run stays the model of stage "experts"'
    assert weights(out) == before
    assert json.loads((out / "evaluate.json").read_text())["top1"] == 70.0
