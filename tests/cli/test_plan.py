import json
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli
from tests.cli.stand_ins import plan_of


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line asked of `reparam.plan`, which answers with a small plan."""
    arguments: dict[str, Any] = {}

    def plan(model: str, recipe: str, **options: Any) -> object:
        arguments.update(options, model=model, recipe=recipe)
        return plan_of()

    monkeypatch.setitem(vars(reparam), "plan", plan)
    return arguments


def test_without_options_the_library_gets_its_own_defaults(run_cli: RunCli, asked: dict[str, Any]) -> None:
    assert run_cli("plan", "deit_tiny", "--recipe", "toy").code == 0
    assert asked == {
        "model": "deit_tiny",
        "recipe": "toy",
        "stages": None,
        "allow_partial": False,
        "overrides": (),
        "num_classes": None,
        "img_size": None,
        "in_chans": None,
        "model_kwargs": {},
    }


def test_every_option_reaches_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = (
        "plan m --recipe r --stage 1 --allow-partial --set stage.0.rule.0.bits=4 --set stage.1.rule.0.bits=3 "
        "--num-classes 10 --img-size 32 --in-chans 1 --model-kwargs depth=2 embed_dim=64 class_token=False act=gelu"
    )
    assert run_cli(*line.split()).code == 0
    assert asked == {
        "model": "m",
        "recipe": "r",
        "stages": 2,
        "allow_partial": True,
        "overrides": ["stage.0.rule.0.bits=4", "stage.1.rule.0.bits=3"],
        "num_classes": 10,
        "img_size": 32,
        "in_chans": 1,
        "model_kwargs": {"depth": 2, "embed_dim": 64, "class_token": False, "act": "gelu"},
    }


def test_json_is_the_plan_and_nothing_else(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("plan", "m", "--recipe", "r", "--json")
    assert reparam.Plan.model_validate(json.loads(answer.out)) == plan_of()
    assert json.loads(answer.out)["recipe"]["stage"][0]["rule"][0]["operator"] == "binary_linear_attention"
    assert answer.err == ""


def test_sites_of_one_fate_are_one_line_with_their_count(run_cli: RunCli, asked: dict[str, Any]) -> None:
    lines = [" ".join(line.split()) for line in run_cli("plan", "deit_tiny", "--recipe", "toy").out.splitlines()]
    assert lines[0] == "deit_tiny with recipe toy, input 3 x 224 x 224"
    assert "│ │ blocks.0-11.attn 12 -> binary_linear_attention conv_kernel=5 rule 0" in lines
    assert "│ │ blocks.0-11.mlp.{fc1,fc2} 24 -> shift_linear bits=4 rule 1" in lines
    assert "│ │ head 1 linear keep: the classifier feels rounding most rule 0" in lines
    assert "│ │ blocks.0-11.attn.qkv 12 linear refused: its weight is shared with blocks.N.attn.twin rule 1" in lines
    assert "│ └── rule 2 matched nothing (it is optional)" in lines


def test_totals_stand_before_and_after_with_their_ratio(run_cli: RunCli, asked: dict[str, Any]) -> None:
    lines = [" ".join(line.split()) for line in run_cli("plan", "deit_tiny", "--recipe", "toy").out.splitlines()]
    assert "parameters 5.72 M -> 5.90 M 1.03x more" in lines
    assert "multiplications 1.26 G -> 420 M 3.00x fewer" in lines
    assert "shifts 0 -> 800 M all new" in lines
    assert "not counted after: aten.sin=2" in lines


@pytest.mark.parametrize("width", [80, 200])
def test_no_line_is_wider_than_the_terminal_and_none_loses_its_end(
    run_cli: RunCli, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = run_cli("plan", "deit_tiny", "--recipe", "toy").out
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out


def test_no_color_is_honoured(run_cli: RunCli, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    green = "\x1b[32m"
    assert green in run_cli("plan", "m", "--recipe", "r").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert green not in run_cli("plan", "m", "--recipe", "r").out
