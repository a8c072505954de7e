from collections.abc import Sequence
from pathlib import Path

import pytest

from reparam.api.recipes import check_recipe
from reparam.recipe.load import load_recipe
from reparam.recipe.schema import Recipe, Stage
from reparam.tradeoff.recipe_file import mixed_recipe, written
from reparam.tradeoff.records import Sensitivity
from tests.tradeoff.stand_ins import found_of, site

SHIFTADDVIT = load_recipe("shiftaddvit")
OTHER = Recipe(
    name="other",
    summary="Another.",
    stages=(
        Stage(name="experts", finetune={"epochs": 99}),
        Stage(name="end", finetune={"lr": 1e-3, "scale": [0.5, 1]}),
    ),
)
ATTENTION = {"kind": "attention", "operator": "binary_linear_attention", "recipe": "shiftaddvit", "stage": "attention"}
LINEAR = {"recipe": "shiftaddvit", "stage": "experts"}
FOUND = found_of(
    site("blocks.0.attn", 0.4, 1.0, options={}, **ATTENTION),
    site("blocks.1.attn", 0.3, 1.0, options={}, **ATTENTION),
    site("blocks.0.attn.qkv", 0.03, 0.2, options={"bits": 5}, **LINEAR),
    site("blocks.1.attn.qkv", 0.03, 0.2, options={"bits": 5}, **LINEAR),
    site("blocks.1.attn.qkv", 0.04, 0.2, options={"bits": 4, "domain": "linear"}, recipe="other", stage="end"),
    site(
        "blocks.0.mlp",
        0.02,
        0.2,
        kind="mlp",
        operator="moe_mlp",
        recipe="other",
        stage="experts",
        options={"latency": [0.7, 0.3], "shift": {"bits": 4}},
    ),
    recipes=(SHIFTADDVIT, OTHER),
)


def text_of(taken: Sequence[int], found: Sensitivity = FOUND) -> str:
    mixed = mixed_recipe(found, taken, name="mixed", summary='A "mixed" recipe.')
    return written(mixed, head=["Made for a test."], comment=lambda group: f"{len(group)} sites")


def read(text: str, folder: Path) -> Recipe:
    (folder / "mixed.toml").write_text(text, encoding="utf-8")
    return check_recipe(folder / "mixed.toml")


@pytest.mark.parametrize("taken", [(0,), (0, 1), (0, 2, 3), (2, 4, 5), (0, 1, 2, 3, 5), ()], ids=str)
def test_the_file_is_the_recipe(taken: tuple[int, ...], tmp_path: Path) -> None:
    assert (
        read(text_of(taken), tmp_path) == mixed_recipe(FOUND, taken, name="mixed", summary='A "mixed" recipe.').recipe
    )


def test_stages_and_settings_are_those_of_the_recipes_in_their_order(tmp_path: Path) -> None:
    recipe = read(text_of((0, 2, 4, 5)), tmp_path)
    assert [stage.name for stage in recipe.stages] == ["attention", "experts", "end"]
    settings = [stage.finetune for stage in recipe.stages]
    assert settings == [*(stage.finetune for stage in SHIFTADDVIT.stages), OTHER.stages[1].finetune]
    assert recipe.paper is None  # of two recipes, one is after a paper


def test_choices_that_agree_are_one_rule_with_the_options_that_are_no_default(tmp_path: Path) -> None:
    experts = read(text_of((2, 3)), tmp_path).stages[0]
    assert [(rule.match.path, rule.options) for rule in experts.rules] == [(r"re:blocks\.(0|1)\.attn\.qkv", {})]
    end = read(text_of((4,)), tmp_path).stages[0]
    assert [(rule.match.path, rule.options) for rule in end.rules] == [
        ("blocks.1.attn.qkv", {"bits": 4, "domain": "linear"})
    ]


def test_a_whole_kind_is_named_by_its_kind_only_in_the_first_stage(tmp_path: Path) -> None:
    attention, experts = read(text_of((0, 1, 2, 3)), tmp_path).stages
    assert attention.rules[0].match.path is None
    assert attention.rules[0].match.kind == "attention"
    assert experts.rules[0].match.path is not None
    assert read(text_of((0,)), tmp_path).stages[0].rules[0].match.path == "blocks.0.attn"


def test_a_kind_with_a_site_that_no_choice_converts_is_not_named_by_its_kind(tmp_path: Path) -> None:
    only = read(text_of((2, 3)), tmp_path).stages[0]  # the head and fc1 are linear sites too
    assert only.rules[0].match.path is not None


def test_every_rule_has_its_comment() -> None:
    lines = text_of((0, 1, 2)).splitlines()
    assert lines[0] == "# Made for a test."
    places = [number for number, line in enumerate(lines) if line == "[[stage.rule]]"]
    assert [lines[place - 1] for place in places] == ["# 2 sites", "# 1 sites"]


def test_a_mix_of_nothing_converts_nothing(tmp_path: Path) -> None:
    recipe = read(text_of(()), tmp_path)
    assert [rule.operator for stage in recipe.stages for rule in stage.rules] == ["keep"]
