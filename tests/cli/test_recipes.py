import json
from pathlib import Path

import pytest

import reparam
from tests.cli.conftest import RunCli

TOY = """
name = "toy"
summary = "A toy."
[[stage]]
name = "shift"
[[stage.rule]]
match = { kind = "linear", path = "blocks.*" }
operator = "shift_linear"
options = { bits = 4 }
[[stage.rule]]
operator = "keep"
optional = true
reason = "all that is left"
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    return path


def test_list_names_every_shipped_recipe_with_its_summary(run_cli: RunCli) -> None:
    answer = run_cli("recipes", "list")
    assert answer.code == 0
    for recipe in reparam.list_recipes():
        assert f"\n{recipe.name} " in f"\n{answer.out}"
    assert [r["name"] for r in json.loads(run_cli("recipes", "list", "--json").out)] == [
        recipe.name for recipe in reparam.list_recipes()
    ]


def test_show_draws_the_stages_and_their_rules_in_order(run_cli: RunCli, toy: Path) -> None:
    lines = [" ".join(line.split()) for line in run_cli("recipes", "show", str(toy)).out.splitlines()]
    assert lines == [
        "A toy.",
        "toy",
        "└── stage 0: shift",
        "└── rule 0 kind=linear, path=blocks.* -> shift_linear bits=4",
        "rule 1 every site -> keep (optional) (all that is left)",
    ]


def test_show_as_json_is_the_recipe_with_its_overrides(run_cli: RunCli, toy: Path) -> None:
    answer = run_cli("recipes", "show", str(toy), "--set", "stage.0.rule.0.bits=3", "--json")
    shown = reparam.Recipe.model_validate(json.loads(answer.out))
    assert shown == reparam.load_recipe(toy, overrides=["stage.0.rule.0.bits=3"])
    assert shown.stages[0].rules[0].options == {"bits": 3}


def test_show_as_toml_is_the_file_itself(run_cli: RunCli, toy: Path) -> None:
    assert run_cli("recipes", "show", str(toy), "--toml").out == TOY
    shipped = reparam.list_recipes()[0]
    assert run_cli("recipes", "show", shipped.name, "--toml").out == shipped.path.read_text(encoding="utf-8")


def test_check_says_that_a_recipe_is_valid(run_cli: RunCli, toy: Path) -> None:
    answer = run_cli("recipes", "check", str(toy))
    assert (answer.code, answer.out) == (0, "toy is valid: 1 stage, 2 rules\n")


def test_check_lists_every_fault_and_fails(run_cli: RunCli, toy: Path) -> None:
    toy.write_text(TOY.replace("shift_linear", "shift_liner").replace('"keep"', '"kepe"'))
    answer = run_cli("recipes", "check", str(toy))
    assert (answer.code, answer.out) == (2, "")
    first, second = answer.err.splitlines()
    assert first.startswith("error: ")
    assert "rule 0" in first
    assert 'Did you mean "shift_linear"' in first
    assert second.startswith("       ")
    assert "rule 1" in second
    assert '"kepe"' in second


@pytest.mark.parametrize("verb", ["show", "check"])
def test_an_unknown_recipe_names_the_close_ones(run_cli: RunCli, verb: str) -> None:
    answer = run_cli("recipes", verb, "shiftadvit")
    assert (answer.code, answer.out) == (2, "")
    assert "shiftaddvit" in answer.err


def test_schema_is_one_json_document(run_cli: RunCli) -> None:
    answer = run_cli("recipes", "schema")
    assert json.loads(answer.out) == json.loads(json.dumps(reparam.recipe_json_schema()))
    assert answer.err == ""
