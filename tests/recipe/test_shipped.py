"""The recipes that come with reparam: each loads, checks, and says what its name promises."""

from pathlib import Path
from typing import Any

import pytest

from reparam.api.recipes import check_recipe
from reparam.errors import RecipeError
from reparam.recipe import shipped
from reparam.recipe.load import load_recipe
from reparam.recipe.resolve import resolve_settings
from reparam.recipe.schema import Recipe, Rule
from reparam.recipe.shipped import shipped_recipes

NAMES = list(shipped_recipes())
FOR_CNNS = {
    "addernet": "adder_conv2d",
    "shiftaddnet": "shift_adder_conv2d",
    "shiftaddnet-fixed": "shift_adder_conv2d",
}
LADDER = ["linear-attention", "add", "dwconv", "shift-attention", "shift-mlp", "moe", "ll-loss"]


def test_the_promised_recipes_are_shipped() -> None:
    ladder = {f"ladder-{rung}" for rung in LADDER}
    assert set(NAMES) >= ladder | {
        "shiftaddvit",
        "shiftaddvit-paper",
        "shiftaddvit-released",
        "deepshift-q",
        "deepshift-ps",
        "none",
        "shift-ptq",
        "shift-ptq-2term",
        "shift-ptq-calibrated",
        *FOR_CNNS,
    }
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_operators_and_options_are_valid(name: str) -> None:
    assert check_recipe(name) == load_recipe(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_named_after_its_file_and_points_editors_to_the_schema(name: str) -> None:
    path = shipped_recipes()[name]
    assert load_recipe(name).name == path.stem == name
    assert path.read_text(encoding="utf-8").startswith("#:schema ./recipe.schema.json\n")
    assert (path.parent / "recipe.schema.json").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_says_why_it_keeps_and_what_it_trains(name: str) -> None:
    for stage in load_recipe(name).stages:
        assert stage.finetune["epochs"] >= 1
        assert resolve_settings(stage.finetune).lr <= (0.1 if name in FOR_CNNS else 1e-3)
        assert all(rule.reason and rule.optional for rule in stage.rules if rule.operator == "keep")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_is_about_is_not_optional_unless_it_is_linear_layers(name: str) -> None:
    """Attention must be there for ShiftAddViT; a convolutional network may have no linear layer but its classifier."""
    rules = [rule for stage in load_recipe(name).stages for rule in stage.rules]
    required = {rule.operator for rule in rules if not rule.optional}
    wanted = FOR_CNNS.get(name) or (
        None if name.startswith(("deepshift", "shift-ptq", "none")) else "binary_linear_attention"
    )
    assert required == ({wanted} if wanted else set())


@pytest.mark.parametrize("name", NAMES)
def test_only_recipes_that_meet_every_network_keep_what_its_operator_refuses_without_being_asked(name: str) -> None:
    lenient = {rule.operator for stage in load_recipe(name).stages for rule in stage.rules if rule.on_refusal == "keep"}
    every_layer = {"shift_linear", "shift_conv2d"} if name.startswith(("deepshift", "shift-ptq")) else set()
    assert lenient == ({FOR_CNNS[name]} if name in FOR_CNNS else every_layer)


def changes(before: Any, after: Any, path: str = "") -> list[str]:
    """The paths at which two plain structures differ; a list that grew differs at its new items."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [found for key in keys for found in changes(before.get(key), after.get(key), f"{path}.{key}")]
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        pairs = zip([*before, *[None] * len(after)], [*after, *[None] * len(before)], strict=False)
        return [found for i, (a, b) in enumerate(pairs) for found in changes(a, b, f"{path}.{i}")]
    return [] if before == after else [path]


def table(name: str) -> dict[str, Any]:
    return load_recipe(name).model_dump(include={"stages"})


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("linear-attention", "add", [".stages.0.rules.0.options.codes"]),
        ("add", "dwconv", [".stages.0.rules.0.options.conv_kernel"]),
        ("dwconv", "shift-attention", [".stages.1.rules.2"]),
        ("shift-attention", "shift-mlp", [".stages.1.rules.3"]),
        ("shift-mlp", "moe", [f".stages.1.rules.3.{key}" for key in ("match.kind", "match.within", "operator")]),
        ("moe", "ll-loss", [".stages.1.finetune.balance_loss_weight"]),
    ],
)
def test_each_rung_of_the_ladder_is_the_one_before_plus_one_thing(before: str, after: str, changed: list[str]) -> None:
    assert changes(table(f"ladder-{before}"), table(f"ladder-{after}")) == changed


def test_the_first_rung_is_linear_attention_without_binary_codes_and_without_a_convolution() -> None:
    (rule,) = load_recipe("ladder-linear-attention").stages[0].rules
    assert rule.options == {"codes": "real", "conv_kernel": 0}


def test_the_last_rung_of_the_ladder_does_what_the_default_recipe_does() -> None:
    assert changes(table("ladder-ll-loss"), table("shiftaddvit")) == [".stages.1.name"]


def rule_for(recipe: Recipe, operator: str) -> Rule:
    (rule,) = [rule for stage in recipe.stages for rule in stage.rules if rule.operator == operator]
    return rule


def test_the_default_uses_the_defaults_of_its_operators() -> None:
    recipe = load_recipe("shiftaddvit")
    assert [stage.name for stage in recipe.stages] == ["attention", "experts"]
    assert all(rule.options == {} for stage in recipe.stages for rule in stage.rules)
    assert rule_for(recipe, "shift_linear").match.within == "attention"
    assert rule_for(recipe, "moe_mlp").match.kind == "mlp"


def test_the_released_router_is_never_trained() -> None:
    recipe = load_recipe("shiftaddvit-released")
    options = rule_for(recipe, "moe_mlp").options
    assert (options["gate"], options["router_init"], options["router_noise"]) == ("one", "normal", 0.0)
    assert recipe.stages[1].finetune["balance_loss_weight"] == 0.0


@pytest.mark.parametrize(("name", "zero_code"), [("deepshift-q", False), ("deepshift-ps", True)])
def test_deepshift_is_five_bits_without_offsets_on_every_linear(name: str, zero_code: bool) -> None:
    rule = rule_for(load_recipe(name), "shift_linear")
    assert (rule.match.kind, rule.match.within, rule.match.path) == ("linear", None, None)
    wanted = {"parameterisation": name[-2:].strip("-"), "bits": 5, "zero_code": zero_code, "per_channel_offset": False}
    assert wanted.items() <= rule.options.items()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shift-ptq", {"bits": 4, "init": "least-squares", "bias_correction": True}),
        ("shift-ptq-2term", {"bits": 5, "init": "least-squares", "bias_correction": True, "terms": 2}),
        ("shift-ptq-calibrated", {"bits": 4, "init": "calibrated"}),
    ],
)
def test_post_training_recipes_differ_in_how_the_same_layers_start(name: str, options: dict[str, object]) -> None:
    recipe = load_recipe(name)
    assert rule_for(recipe, "shift_linear").options == rule_for(recipe, "shift_conv2d").options == options
    without = {"stages": {0: {"rules": {"__all__": {"options"}}}}}
    assert recipe.model_dump(include={"stages"}, exclude=without) == load_recipe("shift-ptq").model_dump(
        include={"stages"}, exclude=without
    )


def test_none_converts_nothing_and_learns_from_the_labels() -> None:
    (stage,) = load_recipe("none").stages
    assert stage.rules == ()
    assert stage.finetune["distill_loss_weight"] == 0.0


def test_recipes_inside_the_package_come_before_those_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "reparam")
    for folder, name in [("reparam/_recipes", "packed"), ("recipes", "checkout")]:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{name}.toml").touch()
    assert shipped_recipes() == {"packed": tmp_path / "reparam/_recipes/packed.toml"}


def test_an_installation_without_recipes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    with pytest.raises(RecipeError, match="carries no recipes"):
        shipped_recipes()
