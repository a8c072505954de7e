"""The grammar of `--set`: where a path leads, what a value is, and the words when either is wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam.errors import RecipeError
from reparam.recipe.load import load_recipe
from reparam.recipe.overrides import parse_override
from reparam.recipe.schema import Match, Recipe, Rule, Stage

RECIPE = Recipe(
    name="mine",
    summary="A test.",
    stages=(
        Stage(
            name="shift",
            rules=(
                Rule(operator="keep", match=Match(path="head", exclude=("head_dist",))),
                Rule(operator="shift_linear", options={"bits": 5}),
            ),
        ),
        Stage(name="rest"),
    ),
)


def change(*overrides: str) -> Recipe:
    return load_recipe(RECIPE, overrides=overrides)


def faults_of(*overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        change(*overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "override",
    ["stage.0.rule.1.options.bits=4", "stage.0.rule.1.bits=4", "stages.0.rules.1.bits = 4", " stage.0.rule.1.bits=+4"],
)
def test_an_option_can_be_set_in_full_and_in_short(override: str) -> None:
    assert change(override).stages[0].rules[1].options == {"bits": 4}


def test_a_nested_option_gets_its_table() -> None:
    options = change("stage.0.rule.1.shift.bits=4", "stage.0.rule.1.shift.zero_code=false").stages[0].rules[1].options
    assert options == {"bits": 5, "shift": {"bits": 4, "zero_code": False}}


def test_keys_of_the_recipe_its_stages_rules_and_matches_can_be_set() -> None:
    changed = change(
        "name=other",
        "stage.1.name = last",
        "stage.1.finetune.epochs=3",
        "stage.0.rule.1.match.path=re:blocks=[0-5]",
        "stage.0.rule.0.operator=shift_linear",
        "stage.0.rule.0.match.exclude=[]",
        "stage.0.rule.0.optional=true",
    )
    assert changed.name == "other"
    assert (changed.stages[1].name, changed.stages[1].finetune) == ("last", {"epochs": 3})
    assert changed.stages[0].rules[1].match.path == "re:blocks=[0-5]"
    first = changed.stages[0].rules[0]
    assert (first.operator, first.match.path, first.match.exclude, first.optional) == ("shift_linear", "head", (), True)


def test_the_later_override_wins_and_the_recipe_itself_stays_as_it_was() -> None:
    before = RECIPE.model_copy(deep=True)
    assert change("stage.0.rule.1.bits=4", "stage.0.rule.1.bits=3").stages[0].rules[1].options == {"bits": 3}
    assert before == RECIPE


def test_no_override_changes_nothing() -> None:
    assert change() == RECIPE


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("1e-4", 1e-4),
        ("true", True),
        ("[0.6, 0.4]", [0.6, 0.4]),
        ("{ bits = 4 }", {"bits": 4}),
        ('"a b"', "a b"),
        ("'4'", "4"),
        ('""', ""),
        ("sign", "sign"),
        ("a=b", "a=b"),
        ("blocks.*.mlp", "blocks.*.mlp"),
        (r"re:(head|fc)\..+", r"re:(head|fc)\..+"),
        ("4\nother = 5", "4\nother = 5"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_a_value_is_toml_or_else_a_bare_word(text: str, value: object) -> None:
    assert parse_override(f"a.b={text}") == (("a", "b"), value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.0.rule.1.bits", "wanted path=value, such as stage.0.rule.0.options.bits=4"),
        ("=4", "wanted path=value, such as stage.0.rule.0.options.bits=4"),
        ("stage..rule=4", "wanted path=value, such as stage.0.rule.0.options.bits=4"),
        ("name=", 'no value after "="; an empty string is written ""'),
        ("stage.0.rule.1.latency=[0.6", "[0.6 is not a TOML value; is a bracket or a quote left open?"),
        ("stage.0.rule.9.bits=4", "there is no stage.0.rule.9; stage.0.rule has 0 (keep), 1 (shift_linear)"),
        ("stage.0.rule.-1.bits=4", "there is no stage.0.rule.-1; stage.0.rule has 0 (keep), 1 (shift_linear)"),
        ("stage.2.finetune.epochs=4", "there is no stage.2; stage has 0 (shift), 1 (rest)"),
        ("stage.shift.finetune.epochs=4", "there is no stage.shift; stage has 0 (shift), 1 (rest)"),
        ("stage.1.rule.0.bits=4", "there is no stage.1.rule.0; stage.1.rule is empty"),
        (
            "stage.0.rule.0.match.exclude.5=x",
            "there is no stage.0.rule.0.match.exclude.5; stage.0.rule.0.match.exclude has 0",
        ),
        ("stage.0.rule.0.match.exclude.0=x", "one item of a list; set all of stage.0.rule.0.match.exclude"),
        ("stage.0.rule.1=4", "one item of a list; set one of its keys, such as stage.0.rule.1.bits=4"),
        ("stage.1=4", "one item of a list; set one of its keys, such as stage.1.finetune.epochs=3"),
        ("name.first=x", "name is no table but 'mine', so it has no 'first'"),
        ("stage.0.rule.1.bits.more=x", "stage.0.rule.1.options.bits is no table but 5, so it has no 'more'"),
        ("nam=x", 'nam: unknown key. Did you mean "name"?'),
        ("stag.0.name=x", 'stag: unknown key. Did you mean "stage"?'),
        ("stage.0.finetun.epochs=4", 'stage.0.finetun: unknown key. Did you mean "finetune"?'),
        ("stage.0.epochs=4", "stage.0.epochs: unknown key. Training settings stand in [stage.finetune]."),
        ("stage.0.finetune.epoch=4", 'stage.0.finetune.epoch: unknown setting. Did you mean "epochs"?'),
        ("stage.0.finetune.epochs=4.5", "stage.0.finetune.epochs: wanted a whole number, got 4.5"),
        ("stage.0.rule.0.match.kind=liner", "wanted 'linear', 'conv2d', 'attention' or 'mlp', got 'liner'."),
        ("stage.0.rule.0.match.path=re:(", "stage.0.rule.0.match.path: not a regular expression"),
        ("stage.0.rule.0.bits=4", 'stage.0.rule.0.options: operator "keep" takes no options'),
        ("stage=[]", "stage: wanted at least one [[stage]] table, got []"),
        ("stage.0.name=../escape", "wanted a name fit for a folder"),
    ],
)
def test_a_wrong_override_is_named_with_what_exists_there(override: str, words: str) -> None:
    (line,) = faults_of(override)
    assert line.startswith(f'recipe "mine", override "{override}": ')
    assert words in line


def test_all_wrong_overrides_are_reported_at_once_and_the_right_one_is_not() -> None:
    lines = faults_of("stage.0.rule.1.bits=4", "nam=x", "stage.7.name=x", "stage.0.finetune.epochs=-1")
    assert [line.split('"')[3] for line in lines] == ["stage.7.name=x", "nam=x", "stage.0.finetune.epochs=-1"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    text=st.text(max_size=30) | st.from_regex(r"(stage|name|rule|match|options|[0-3]|[.=x\[{\"]){1,9}", fullmatch=True)
)
def test_any_text_is_applied_or_raises_a_recipe_error(text: str) -> None:
    refusal = None
    try:
        change(text)
    except RecipeError as error:
        refusal = str(error)
    assert refusal is None or 'recipe "mine", override' in refusal
