import json
from pathlib import Path
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli
from tests.cli.stand_ins import EVALUATION


def _result() -> Any:
    from reparam.api.finetune import FinetuneResult, StageResult

    best = EVALUATION.model_copy(update={"top1": 90.5})
    before = EVALUATION.model_copy(update={"top1": 41.0})
    stage = StageResult(
        name="experts", before=before, best=best, best_epoch=3, epochs=5, checkpoint=Path("runs/x/stage-0-experts")
    )
    return FinetuneResult(out=Path("runs/x"), dense=EVALUATION, stages=(stage,))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def finetune(source: str, **options: Any) -> object:
        arguments.update(options, source=source)
        options["progress"].message("evaluating the dense original")
        return _result()

    monkeypatch.setitem(vars(reparam), "finetune", finetune)
    return arguments


def test_options_reach_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = (
        "finetune deit_tiny --recipe shiftaddvit --data-dir d --epochs 3 --stage 1 --weights none --out there "
        "--set stage.0.finetune.epochs=3 --allow-partial --num-classes 10 --model-kwargs depth=2 --device cpu"
    )
    assert run_cli(*line.split()).code == 0
    del asked["progress"]
    assert asked == {
        "source": "deit_tiny",
        "recipe": "shiftaddvit",
        "data": reparam.DataSettings(data_dir="d"),
        "settings": {"epochs": 3},
        "stage": 1,
        "weights": "none",
        "out": Path("there"),
        "overrides": ["stage.0.finetune.epochs=3"],
        "num_classes": 10,
        "img_size": None,
        "in_chans": None,
        "model_kwargs": {"depth": 2},
        "allow_partial": True,
        "device": "cpu",
    }


def test_each_stage_is_a_row_beside_the_dense_original(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("finetune", "runs/x", "--data-dir", "d")
    assert [" ".join(line.split()) for line in answer.out.splitlines()] == [
        "stage converted fine-tuned to dense best epoch",
        "dense 91.25 %",
        "experts 41.00 % 90.50 % -0.75 3/5",
        "top-1 on 400 images; difference in points",
        "saved to runs/x",
    ]
    assert answer.err == "evaluating the dense original\n"


def test_json_is_the_result_and_progress_stays_on_stderr(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("finetune", "runs/x", "--data-dir", "d", "--json")
    assert reparam.FinetuneResult.model_validate(json.loads(answer.out)) == _result()
    assert answer.err == "evaluating the dense original\n"
