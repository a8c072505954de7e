import json
from pathlib import Path
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli
from tests.tradeoff.stand_ins import found_of, site

FOUND = found_of(
    site("blocks.0.mlp", 0.2, 3.25, kind="mlp", operator="moe_mlp", routing="all tokens to the shift expert"),
    site("blocks.1.attn.qkv", 0.00105, 0.5, options={"bits": 4}),
    site("blocks.1.attn.qkv", 0.00025, -0.25),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def sensitivity(source: str, recipe: Any, *, progress: Any, **options: Any) -> object:
        arguments.update(options, source=source, recipe=recipe)
        progress(reparam.SensitivityStep(what="planning"))
        progress(reparam.SensitivityStep(what="measured", done=2, total=3))
        progress(reparam.SensitivityStep(what="measured", done=3, total=3, site=FOUND.sites[0]))
        return FOUND

    monkeypatch.setitem(vars(reparam), "sensitivity", sensitivity)
    return arguments


def test_options_reach_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = "sensitivity x --recipe a --recipe b.toml --images 64 --prefix-memory 0.5 --out s.json --fresh --data-dir d"
    assert run_cli(*line.split()).code == 0
    assert (asked["source"], asked["recipe"], asked["images"]) == ("x", ["a", "b.toml"], 64)
    assert (asked["prefix_memory_gb"], asked["out"], asked["fresh"]) == (0.5, Path("s.json"), True)
    assert asked["data"] == reparam.DataSettings(data_dir="d")


def test_the_ranking_says_what_was_measured_and_how(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("sensitivity", "runs/x", "--data-dir", "d")
    assert [" ".join(line.split()) for line in answer.out.splitlines()] == [
        "runs/x: dense top-1 90.00 %, 95 % interval 86.60 to 92.60 %, on 400 images",
        "site becomes top-1 lost KL, nats",
        "blocks.0.mlp moe_mlp 86.75 % +3.25 2.00e-01",
        "blocks.1.attn.qkv shift_linear (bits=4) 89.50 % +0.50 1.05e-03",
        "blocks.1.attn.qkv shift_linear (bits=5) 90.25 % -0.25 2.50e-04",
        "measured here, cpu: one site converted, untrained, all others dense; points below dense",
        "mixtures of experts: all tokens to the shift expert",
        "1 site left dense, with reasons in the JSON file",
    ]


def test_progress_goes_to_stderr(run_cli: RunCli, asked: dict[str, Any]) -> None:
    assert run_cli("sensitivity", "runs/x", "--data-dir", "d").err.splitlines() == [
        "planning",
        "measured, 2 of 3 done",
        "measured 3/3  blocks.0.mlp moe_mlp  +3.25 points, KL 2.00e-01  1.5 s",
    ]


def test_json_is_the_result(run_cli: RunCli, asked: dict[str, Any]) -> None:
    read = json.loads(run_cli("sensitivity", "runs/x", "--data-dir", "d", "--json").out)
    assert reparam.Sensitivity.model_validate(read) == FOUND


def test_an_error_is_a_sentence_and_exit_code_two(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise reparam.errors.RecipeError("name one with --recipe")

    monkeypatch.setitem(vars(reparam), "sensitivity", refuse)
    answer = run_cli("sensitivity", "x")
    assert (answer.code, answer.out, answer.err) == (2, "", "error: name one with --recipe\n")
