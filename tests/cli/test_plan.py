import json
from typing import Any

import pytest

import reparam
from reparam.graph.records import Plan, Skip, StagePlan, Step
from reparam.recipe.schema import Recipe, Rule, Stage
from reparam_cli.render.site_table import broken
from tests.cli.conftest import RunCli
from tests.cli.stand_ins import plan_of, site


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


def lines_of(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, plan: Plan) -> list[str]:
    monkeypatch.setitem(vars(reparam), "plan", lambda *_, **__: plan)
    return [" ".join(line.split()) for line in run_cli("plan", "m", "--recipe", "r").out.splitlines()]


def plan_with(stage: StagePlan, **changed: Any) -> Plan:
    return plan_of().model_copy(update={"stages": (stage,), **changed})


def test_the_second_site_of_one_forward_is_told_from_the_first(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = tuple(
        Step(
            site=site(f"blocks.{i}", "attention", number=number),
            operator="binary_linear_attention",
            options={},
            rule="stage 0, rule 0",
        )
        for i in range(4)
        for number in range(5)
    )
    skip = Skip(site=site("tail", "attention", number=1), cause="no rule", reason="no rule picks it")
    lines = lines_of(run_cli, monkeypatch, plan_with(StagePlan(name="s", steps=steps, skips=(skip,))))
    for which in ("", " (2nd attention)", " (3rd attention)", " (4th attention)", " (5th attention)"):
        assert f"│ │ blocks.0-3{which} 4 -> binary_linear_attention rule 0" in lines
    assert any("tail (2nd attention) 1 attention no rule picks it" in line for line in lines)


def test_idle_sites_and_those_without_gain_are_folded_with_their_cause(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    skips = tuple(
        Skip(site=site(f"{name}.{i}", idle=cause == "idle"), cause=cause, reason=reason, rule="stage 0, rule 0")
        for name, cause, reason in (("spare", "idle", "it took no part"), ("pool", "no gain", "there is one query"))
        for i in range(3)
    )
    lines = lines_of(run_cli, monkeypatch, plan_with(StagePlan(name="s", steps=(), skips=skips)))
    assert "│ spare.0-2 3 linear idle: it took no part rule 0" in lines
    assert "│ pool.0-2 3 linear no gain: there is one query rule 0" in lines


@pytest.mark.parametrize(("operator", "is_told"), [("shift_linear", True), ("keep", False)])
def test_a_plan_that_changes_nothing_says_so_unless_its_recipe_only_keeps(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, operator: str, is_told: bool
) -> None:
    recipe = Recipe(name="r", summary="R.", stages=(Stage(name="s", rules=(Rule(operator=operator),)),))
    lines = lines_of(run_cli, monkeypatch, plan_with(StagePlan(name="s", steps=(), skips=()), recipe=recipe))
    assert ("├── This recipe changes nothing in this model." in lines) is is_told


def test_what_the_run_did_not_show_and_what_nothing_reads_any_more_are_told(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphans = tuple(f"blocks.{i}.attn.table" for i in range(12))
    stage = StagePlan(name="s", steps=(), skips=(), orphans=orphans)
    lines = lines_of(run_cli, monkeypatch, plan_with(stage, unseen=("a branch",)))
    assert "├── not seen: a branch" in lines
    leaves = next(number for number, line in enumerate(lines) if line.startswith("│ └── leaves"))
    assert lines[leaves : leaves + 2] == [
        "│ └── leaves 12 parameters unread, and frozen",
        "│ blocks.0-11.attn.table",
    ]


def test_long_paths_leave_room_for_what_is_said_of_them(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = "model.vision.encoder.layers.0.attention.attention.self_attention.{}_projection_of_tokens"
    reason = "the classifier is one product per image"
    steps = tuple(
        Step(site=site(path.format(name), "linear"), operator="shift_linear", options={}, rule="stage 0, rule 0")
        for name in ("query", "key", "value")
    )
    skip = Skip(site=site(path.format("out"), "linear"), cause="keep", reason=reason, rule="stage 0, rule 1")
    monkeypatch.setitem(
        vars(reparam), "plan", lambda *_, **__: plan_with(StagePlan(name="s", steps=steps, skips=(skip,)))
    )
    out = run_cli("plan", "m", "--recipe", "r").out
    assert "-> shift_linear" in out
    assert max(map(len, out.splitlines())) <= 100
    assert all(sum(word in line.split() for line in out.splitlines()) for word in reason.split())
    assert sum(len(line.split()) > 0 for line in out.splitlines()) < 25


@pytest.mark.parametrize(
    ("path", "width", "lines"),
    [
        ("blocks.0-11.attn", 16, ["blocks.0-11.attn"]),
        ("blocks.0-11.attn", 15, ["blocks.0-11.", "  attn"]),
        ("encoder.layers.0.mlp.{fc1,fc2}", 10, ["encoder.", "  layers.", "  0.mlp.", "  {fc1,", "  fc2}"]),
        ("b.0,2,4.attn", 7, ["b.", "  0,2,4.", "  attn"]),
        ("a_name_without_dots (2nd attention)", 8, ["a_name_without_dots (2nd attention)"]),
    ],
    ids=["fits", "one break", "narrow", "numbers", "none possible"],
)
def test_paths_break_after_dots(path: str, width: int, lines: list[str]) -> None:
    assert broken(path, width) == lines
