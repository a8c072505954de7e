import json
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli


def layer(path: str, error: float | None, **figures: Any) -> reparam.Difference:
    return reparam.Difference(path=path, relative_error=error, max_abs_error=error, **({"correlation": 0.25} | figures))


MADE = reparam.Verification(
    a="runs/x",
    b="m.onnx",
    agree=False,
    images=16,
    data="digits",
    tolerance=1e-3,
    outputs=layer("", None, correlation=None),
    top1_agreement=93.75,
    first=layer("blocks.1.fc", 0.5),
    before=layer("blocks.0.fc", 0.0, correlation=1.0),
    layers=(layer("blocks.0.fc", 0.0, correlation=1.0), layer("blocks.1.fc", 0.5)),
    uncompared=("head",),
)
AGREE = MADE.model_copy(
    update={"agree": True, "outputs": layer("", 2.5e-7), "first": None, "before": None, "uncompared": ()}
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line asked of `reparam.verify`; `answer` may hold what it gives."""
    arguments: dict[str, Any] = {"answer": AGREE}

    def verify(a: str, b: str, **options: Any) -> object:
        arguments.update(options, a=a, b=b)
        return arguments["answer"]

    monkeypatch.setitem(vars(reparam), "verify", verify)
    return arguments


def test_every_option_reaches_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = (
        "verify runs/x m.onnx --images 4 --tolerance 0.1 --data-dir d --val-split test --weights none --num-classes 3 "
        "--img-size 8 --in-chans 1 --model-kwargs depth=1"
    )
    assert run_cli(*line.split()).code == 0
    del asked["answer"]
    assert asked == {
        "a": "runs/x",
        "b": "m.onnx",
        "data": reparam.DataSettings(data_dir="d", val_split="test"),
        "images": 4,
        "tolerance": 0.1,
        "weights": "none",
        "num_classes": 3,
        "img_size": 8,
        "in_chans": 1,
        "model_kwargs": {"depth": 1},
    }


def lines(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_models_that_differ_leave_with_1_and_show_the_layer_and_the_one_before(
    run_cli: RunCli, asked: dict[str, Any]
) -> None:
    asked["answer"] = MADE
    answer = run_cli("verify", "a", "b")
    assert answer.code == 1
    assert lines(answer.out) == [
        "runs/x and m.onnx differ",
        "relative error largest error correlation",
        "outputs not finite not finite -",
        "blocks.0.fc 0 0 1.000000",
        "blocks.1.fc 5.00e-01 5.00e-01 0.250000",
        "same largest output on 93.75 % of 16 images (digits)",
        "2 layers compared at a tolerance of 0.001: blocks.1.fc is the first that differs",
        "1 layer of other shapes, the first head",
    ]


def test_models_that_agree_leave_with_0(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("verify", "a", "b")
    assert answer.code == 0
    assert lines(answer.out)[0] == "runs/x and m.onnx agree"
    assert lines(answer.out)[2:] == [
        "outputs 2.50e-07 2.50e-07 0.250000",
        "same largest output on 93.75 % of 16 images (digits)",
        "2 layers compared at a tolerance of 0.001: none differs",
    ]


def test_a_layer_that_differs_between_outputs_that_agree_is_shown_as_such(
    run_cli: RunCli, asked: dict[str, Any]
) -> None:
    asked["answer"] = AGREE.model_copy(update={"first": MADE.first})
    answer = run_cli("verify", "a", "b")
    assert answer.code == 0
    assert "blocks.1.fc is the first that differs, though the outputs agree" in answer.out


def test_without_layers_it_says_why(run_cli: RunCli, asked: dict[str, Any]) -> None:
    asked["answer"] = AGREE.model_copy(update={"layers": ()})
    assert "no layers compared: they share no module paths" in run_cli("verify", "a", "b").out


@pytest.mark.parametrize("made", [MADE, AGREE], ids=["differ", "agree"])
def test_json_is_the_verification_with_the_same_exit_code(
    run_cli: RunCli, asked: dict[str, Any], made: reparam.Verification
) -> None:
    asked["answer"] = made
    answer = run_cli("verify", "a", "b", "--json")
    assert reparam.Verification.model_validate(json.loads(answer.out)) == made
    assert answer.code == (0 if made.agree else 1)


def test_a_file_that_is_not_there_is_bad_input(run_cli: RunCli) -> None:
    answer = run_cli("verify", "nowhere.onnx", "nowhere.pt2")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: nowhere.onnx: no such file")


def test_a_narrow_terminal_loses_no_column(
    run_cli: RunCli, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked["answer"] = MADE
    monkeypatch.setenv("COLUMNS", "40")
    narrow = lines(run_cli("verify", "a", "b").out)
    assert "relative error largest error correlation" in narrow
    assert "outputs not finite not finite -" in narrow
