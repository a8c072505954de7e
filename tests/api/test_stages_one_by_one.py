"""Stages of a run that are trained in a call each, and what is on record of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from reparam.api.finetune import FinetuneResult
from reparam.errors import CheckpointError
from reparam.recipe.data_settings import DataSettings
from tests.api.staged import STEPS, Killed, Notes, assert_same_run, train


@pytest.fixture(scope="module")
def straight(data: DataSettings, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """Both stages in one call."""
    return train(tmp_path_factory.mktemp("runs") / "straight", data)


def on_record(run: Path) -> list[str]:
    told = json.loads((run / "finetune.json").read_text())
    names = [stage["name"] for stage in told["stages"]]
    assert list(told["request"]["stages"]) == names
    assert [stage["stage"] for stage in yaml.safe_load((run / "args.yaml").read_text())["stages"]] == names
    return names


def test_two_calls_of_a_stage_each_that_may_be_resumed_end_as_one_call(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path
) -> None:
    out, notes = tmp_path / "run", Notes()
    first = train(out, data, stage=0, resume="auto")
    second = train(out, data, stage=1, resume="auto")
    assert_same_run(out, straight.out)
    assert [stage.name for stage in (*first.stages, *second.stages)] == on_record(out) == ["attention", "experts"]
    whole = train(out, data, resume="auto", progress=notes)
    assert (notes.steps, notes.messages) == (0, ["already trained: attention, experts"])
    assert whole.stages == (*first.stages, *second.stages)


def test_two_calls_without_resume_leave_both_stages_on_record(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(out, data, stage=0)
    train(out, data, out, recipe=None, stage=1)
    assert on_record(out) == ["attention", "experts"]
    assert_same_run(out, straight.out)


def test_a_stage_that_was_killed_in_its_own_call_is_gone_on_with_by_a_call_for_all(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path
) -> None:
    out, notes = tmp_path / "run", Notes()
    train(out, data, stage=0)
    with pytest.raises(Killed):
        train(out, data, stage=1, resume="auto", progress=Notes(last=4))
    train(out, data, resume="auto", progress=notes)
    assert notes.steps == STEPS // 2 - 3
    assert_same_run(out, straight.out)


def test_a_later_stage_is_trained_again_after_one_before_it_was(data: DataSettings, tmp_path: Path) -> None:
    out, notes = tmp_path / "run", Notes()
    train(out, data)
    train(out, data, out, recipe=None, stage=0, settings={"lr": 1e-3})
    assert on_record(out) == ["attention"]
    train(out, data, stage=1, resume="auto", progress=notes)
    assert notes.steps == STEPS // 2
    assert on_record(out) == ["attention", "experts"]


def test_a_stage_that_is_finished_leaves_the_state_of_a_later_one(
    data: DataSettings, straight: FinetuneResult, tmp_path: Path
) -> None:
    out, notes = tmp_path / "run", Notes()
    with pytest.raises(Killed):
        train(out, data, progress=Notes(last=8))
    train(out, data, stage=0, resume="auto", progress=notes)
    assert notes.steps == 0
    train(out, data, resume="auto", progress=notes)
    assert notes.steps == STEPS - 7
    assert_same_run(out, straight.out)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"crop_pct": 0.9}, "data.crop_pct: was 1.0, is 0.9"), ({}, "stages.attention.lr: was 0.003, is 0.1")],
)
def test_what_was_trained_otherwise_is_refused_in_another_call_too(
    data: DataSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    out = tmp_path / "run"
    train(out, data, stage=0, settings={"epochs": 0})
    train(out, data, stage=1, resume="auto", settings={"epochs": 0, "lr": 0.1})  # another stage, other settings
    with pytest.raises(CheckpointError, match=message):
        train(out, replace(data, **change), resume="auto", settings={"epochs": 0, "lr": 0.1})


def test_a_stage_that_was_trained_on_other_data_does_not_stay_on_record(data: DataSettings, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, data, stage=0, settings={"epochs": 0})
    train(out, replace(data, crop_pct=0.9), out, recipe=None, stage=1, settings={"epochs": 0})
    assert on_record(out) == ["experts"]
