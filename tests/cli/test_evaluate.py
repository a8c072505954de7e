import json
from pathlib import Path
from typing import Any

import pytest

import reparam
from reparam.train.per_class import ClassResult
from tests.cli.conftest import RunCli
from tests.cli.stand_ins import EVALUATION

CLASSES = (
    *(
        ClassResult(name=f"cat {i}", images=10, recall=50.0 + i, precision=90.0, mistaken_for="dog", mistaken=3)
        for i in range(25)
    ),
    ClassResult(name="[b]owl[/b]", images=7, recall=0.0, precision=None, mistaken_for="cat 0", mistaken=4),
    ClassResult(name="dodo", images=0, recall=None, precision=0.0, mistaken_for=None, mistaken=0),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def evaluate(source: str, **options: Any) -> object:
        arguments.update(options, source=source)
        return EVALUATION.model_copy(update={"per_class": CLASSES, "model_images_per_second": 1650.2})

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
        "speed 812 images/s measured here, cpu, with loading",
        "1650 images/s measured here, cpu, the model alone",
        "experts mult 56% shift 44% mean of 2 layers",
        "mult 62% shift 38% blocks.0.mlp",
        "mult 50% shift 50% blocks.1.mlp",
    ]


def test_json_is_the_evaluation(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("evaluate", "runs/x", "--data-dir", "d", "--json")
    read = reparam.Evaluation.model_validate(json.loads(answer.out))
    assert read.model_copy(update={"per_class": (), "model_images_per_second": None}) == EVALUATION
    assert read.per_class == CLASSES


def test_classes_are_shown_worst_first_and_bounded(run_cli: RunCli, asked: dict[str, Any]) -> None:
    out = run_cli("evaluate", "runs/x", "--data-dir", "d", "--per-class").out
    assert asked["per_class"] is True
    lines = [" ".join(line.split()) for line in out.splitlines()]
    start = lines.index("class images recall precision most often mistaken for")
    assert lines[start + 1 : start + 3] == ["[b]owl[/b] 7 0.00 % - cat 0 (4)", "cat 0 10 50.00 % 90.00 % dog (3)"]
    assert lines[start + 20 :] == [
        "cat 18 10 68.00 % 90.00 % dog (3)",
        "the worst 20 of 26 classes; --json has all",
        "1 classes have no images",
    ]


def test_without_the_flag_there_is_no_table_of_classes(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("evaluate", "runs/x", "--data-dir", "d", "--confusion", "m.png")
    assert "recall" not in answer.out
    assert (asked["per_class"], asked["confusion"]) == (False, Path("m.png"))
