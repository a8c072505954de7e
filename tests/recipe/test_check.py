"""`check_recipe`: operators and options are validated as well, against a registry that holds one fake operator."""

from pathlib import Path

import pytest

from reparam.api.recipes import check_recipe, list_recipes
from reparam.errors import RecipeError
from reparam.ops.base import OPERATORS, Operator, OperatorOptions, operator
from reparam.recipe.schema import Recipe, Rule, Stage
from reparam.recipe.shipped import shipped_recipes


class FakeOptions(OperatorOptions):
    bits: int = 5


@pytest.fixture(autouse=True)
def fake_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    OPERATORS.names()  # discover the real ones first, lest they land in the copy
    monkeypatch.setattr(OPERATORS, "_entries", dict(OPERATORS._entries))

    @operator("toy_scale", kind="linear", source="a test")
    class FakeLinear(Operator):
        Options = FakeOptions


def recipe(*rules: Rule) -> Recipe:
    return Recipe(name="mine", summary="A test.", stages=(Stage(name="a"), Stage(name="b", rules=rules)))


def test_a_valid_recipe_is_returned() -> None:
    valid = recipe(Rule(operator="toy_scale", options={"bits": 4}), Rule(operator="keep"))
    assert check_recipe(valid) == valid


def test_every_fault_of_every_rule_is_reported_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
name = "mine"
summary = "A test."
[[stage]]
name = "a"
rule = [{ operator = "keep" }, { operator = "toy_scal" }, { operator = "keeep" }]
[[stage]]
name = "b"
[[stage.rule]]
match = { kind = "mlp" }
operator = "toy_scale"
options = { bitz = 4, bits = "many" }
"""
    )
    with pytest.raises(RecipeError) as caught:
        check_recipe(path)
    first, second, third, *options = str(caught.value).splitlines()
    assert first == f'{path}, stage 0, rule 1: unknown operator "toy_scal". Did you mean "toy_scale"?'
    assert second.startswith(f'{path}, stage 0, rule 2: unknown operator "keeep".')
    assert second.endswith('Did you mean "keep"?')
    assert third == f'{path}, stage 1, rule 0: toy_scale takes sites of kind "linear", but the rule picks kind "mlp"'
    assert sorted(line.split(":")[0] for line in options) == [
        f"{path}, stage 1, rule 0.options",
        f"{path}, stage 1, rule 0.options.bits",
    ]


def test_a_fault_of_the_schema_is_reported_before_operators_are_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n')
    with pytest.raises(RecipeError, match='key "summary": missing'):
        check_recipe(path)


def test_overrides_are_checked_too() -> None:
    with pytest.raises(
        RecipeError, match=r'stage 1, rule 0\.options: toy_scale has no option "bitz"\. Did you mean "bits"'
    ):
        check_recipe(recipe(Rule(operator="toy_scale")), overrides=["stage.1.rule.0.bitz=4"])


def test_the_list_names_each_shipped_recipe_with_its_file() -> None:
    assert {entry.name: entry.path for entry in list_recipes()} == shipped_recipes()
    entry = next(entry for entry in list_recipes() if entry.name == "shiftaddvit")
    assert entry.paper == "arXiv:2306.06446"
    assert entry.summary.endswith(".")


def test_overrides_in_one_text_are_not_read_letter_by_letter() -> None:
    with pytest.raises(RecipeError, match=r"a list of changes, such as \['stage.0.rule.0.bits=4'\], got one text"):
        check_recipe("shift-ptq", overrides="stage.0.rule.0.bits=4")
