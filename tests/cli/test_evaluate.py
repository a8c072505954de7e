import json
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli
from tests.cli.stand_ins import EVALUATION


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def evaluate(source: str, **options: Any) -> object:
        arguments.update(options, source=source)
        return EVALUATION

    monkeypatch.setitem(vars(reparam), "evaluate", evaluate)
    return arguments


def test_data_options_reach_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = "evaluate runs/x --data-dir d --val-split test --crop-pct 0.9"
    assert run_cli(*line.split()).code == 0
    assert asked["source"] == "runs/x"
    assert asked["data"] == reparam.DataSettings(data_dir="d", val_split="test", crop_pct=0.9)


def test_accuracy_is_shown_with_its_interval_and_the_experts(run_cli: RunCli, asked: dict[str, Any]) -> None:
    lines = [" ".join(line.split()) for line in run_cli("evaluate", "runs/x", "--data-dir", "d").out.splitlines()]
    assert lines == [
        "runs/x on 400 images",
        "top-1 91.25 % 95 % interval 88.00 to 93.60 %",
        "top-5 99.50 %",
        "loss 0.3125",
        "speed 812 images/s measured here, cpu",
        "experts mult 56% shift 44% mean of 2 layers",
        "mult 62% shift 38% blocks.0.mlp",
        "mult 50% shift 50% blocks.1.mlp",
    ]


def test_json_is_the_evaluation(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("evaluate", "runs/x", "--data-dir", "d", "--json")
    assert reparam.Evaluation.model_validate(json.loads(answer.out)) == EVALUATION
