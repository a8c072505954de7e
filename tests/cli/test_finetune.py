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


def _rate_test() -> Any:
    from reparam.train.rate_test import RateTest

    return RateTest(
        rates=(1e-7, 1e-4, 0.1),
        losses=(2.0, 1.0, 5.0),
        smoothed_rates=(1e-7, 1e-5, 1e-3),
        smoothed_losses=(2.0, 1.5, 2.5),
        steepest=1.234e-4,
        tenth_of_best=5e-4,
        ended="the loss was over 4 times its best at 0.1",
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def finetune(source: str, **options: Any) -> object:
        arguments.update(options, source=source)
        options["progress"].message("evaluating the dense original")
        return _result()

    def find_lr(source: str, **options: Any) -> object:
        arguments.update(options, source=source, verb="find_lr")
        return _rate_test()

    monkeypatch.setitem(vars(reparam), "finetune", finetune)
    monkeypatch.setitem(vars(reparam), "find_lr", find_lr)
    return arguments


def test_options_reach_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = (
        "finetune deit_tiny --recipe shiftaddvit --data-dir d --epochs 3 --stage 1 --weights none --out there "
        "--set stage.0.finetune.epochs=3 --allow-partial --num-classes 10 --model-kwargs depth=2 "
        "--device cpu --resume auto"
    )
    assert run_cli(*line.split()).code == 0
    del asked["progress"]
    assert asked == {
        "source": "deit_tiny",
        "recipe": "shiftaddvit",
        "data": reparam.DataSettings(data_dir="d"),
        "settings": {"epochs": 3},
        "stage": 1,
        "resume": "auto",
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


def test_find_lr_shows_both_suggestions(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("finetune", "runs/x", "--data-dir", "d", "--find-lr")
    assert asked["verb"] == "find_lr"
    assert [" ".join(line.split()) for line in answer.out.splitlines()] == [
        "suggestion lr",
        "where the loss falls fastest 1.2e-04",
        "a tenth of where it is lowest 5.0e-04",
        "3 steps up to a rate of 0.1; the loss was over 4 times its best at 0.1",
    ]


def test_find_lr_as_json_is_the_whole_test(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("finetune", "runs/x", "--data-dir", "d", "--find-lr", "--json")
    assert reparam.RateTest.model_validate(json.loads(answer.out)) == _rate_test()


def test_find_lr_says_when_there_is_nothing_to_suggest(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = _rate_test().model_copy(update={"steepest": None, "tenth_of_best": None})
    monkeypatch.setitem(vars(reparam), "find_lr", lambda source, **options: nothing)
    answer = run_cli("finetune", "runs/x", "--data-dir", "d", "--find-lr")
    assert answer.out.splitlines()[0] == "no rate to suggest: the loss never fell"


def test_trackers_are_a_setting(run_cli: RunCli, asked: dict[str, Any]) -> None:
    run_cli("finetune", "runs/x", "--data-dir", "d", "--log-with", "tensorboard,wandb")
    assert asked["settings"] == {"log_with": "tensorboard,wandb"}
