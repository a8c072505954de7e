"""Loading a recipe: what is accepted, and the words of every refusal."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reparam.errors import RecipeError
from reparam.recipe.load import load_recipe
from reparam.recipe.schema import Match, Recipe, Rule, Stage

GOOD = """
name = "mine"
summary = "A test."
[[stage]]
name = "shift"
[[stage.rule]]
match = { kind = "linear", within = "mlp" }
operator = "shift_linear"
options = { bits = 4 }
[stage.finetune]
epochs = 3
clip_grad = "none"
"""


def write(folder: Path, text: str | bytes, *, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults_of(source: str | Path | Recipe) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source)
    return str(caught.value).splitlines()


def test_a_file_becomes_the_recipe_it_spells(tmp_path: Path) -> None:
    wanted = Recipe(
        name="mine",
        summary="A test.",
        stages=(
            Stage(
                name="shift",
                rules=(Rule(match=Match(kind="linear", within="mlp"), operator="shift_linear", options={"bits": 4}),),
                finetune={"epochs": 3, "clip_grad": "none"},
            ),
        ),
    )
    path = write(tmp_path, GOOD)
    assert load_recipe(path) == wanted
    assert load_recipe(str(path)) == wanted
    assert load_recipe(wanted) == wanted


@pytest.mark.parametrize(
    "text", ["\ufeff" + GOOD, GOOD.replace("\n", "\r\n")], ids=["byte-order mark", "windows lines"]
)
def test_what_windows_editors_add_does_no_harm(tmp_path: Path, text: str) -> None:
    assert load_recipe(write(tmp_path, text)) == load_recipe(write(tmp_path, GOOD))


def test_loading_needs_no_torch() -> None:
    code = (
        "import sys, reparam; reparam.load_recipe('shiftaddvit'); reparam.list_recipes(); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"


def test_every_fault_of_a_file_is_reported_at_once_with_file_place_and_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
summry = "A test."
name = "../escape"
[[stage]]
name = "shift"
epochs = 3
[[stage.rule]]
match = { knd = "linear", path = "re:(", within = "mpl" }
operatr = "shift_linear"
bits = 4
kind = "mlp"
[[stage.rule]]
operator = "keep"
options = { bits = 4 }
[stage.finetune]
epoch = 3
lr = "fast"
""",
    )
    assert faults_of(path) == [
        f'{path}, key "name": wanted a name fit for a folder (letters, digits, space . _ + -, a letter or digit first),'
        " got '../escape'",
        f'{path}, stage 0, key "epochs": unknown key. Training settings stand in [stage.finetune].',
        f'{path}, stage 0, finetune, key "epoch": unknown setting. Did you mean "epochs"?',
        f"{path}, stage 0, finetune, key \"lr\": wanted a number, got 'fast'",
        f'{path}, stage 0, rule 0, key "bits": unknown key. Known: match, operator, options, reason, optional,'
        " on_refusal. Options of the operator stand in [stage.rule.options].",
        f'{path}, stage 0, rule 0, key "kind": unknown key. It stands in the rule\'s match: match = {{ kind = ... }}.',
        f'{path}, stage 0, rule 0, match, key "knd": unknown key. Did you mean "kind"?',
        f'{path}, stage 0, rule 0, match, key "path": not a regular expression, missing ), unterminated subpattern at'
        " position 0: 're:('",
        f"{path}, stage 0, rule 0, match, key \"within\": wanted 'attention' or 'mlp', got 'mpl'. Did you mean"
        ' "mlp"?',
        f'{path}, stage 0, rule 0, key "operator": missing',
        f'{path}, stage 0, rule 0, key "operatr": unknown key. Did you mean "operator"?',
        f'{path}, stage 0, rule 1, key "options": operator "keep" takes no options',
        f'{path}, key "summary": missing',
        f'{path}, key "summry": unknown key. Did you mean "summary"?',
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('name = "a"\nsummary = "b"', 'key "stage": missing: a recipe needs at least one [[stage]] table'),
        (
            'name = "a"\nsummary = "b"\nstage = []',
            'key "stage": wanted at least one [[stage]] table, got []',
        ),
        (
            'name = "a"\nsummary = "b"\n[stage]\nname = "c"',
            "key \"stage\": wanted at least one [[stage]] table, got {'name': 'c'}",
        ),
        (
            'name = "a"\nsummary = "b"\n[[stage]]\nname = "c"\n[stage.rule]\noperator = "keep"',
            "stage 0, key \"rule\": wanted at least one [[stage.rule]] table, got {'operator': 'keep'}",
        ),
        ('name = 3\nsummary = "b"\nstage = [{ name = "c" }]', 'key "name": wanted a string, got 3'),
        (
            'name = "a"\nsummary = "b"\nstage = [{ name = "c", finetune = 3 }]',
            'stage 0, key "finetune": wanted a table, got 3',
        ),
        (
            'name = "a"\nsummary = "b"\nstage = [{ name = "c", rule = [{ operator = "keep", match = "x" }] }]',
            "stage 0, rule 0, key \"match\": wanted a table, got 'x'",
        ),
        (
            'name = "a"\nsummary = "b"\nstage = [{ name = "c", rule = [{ operator = "keep", match.exclude = "x" }] }]',
            "stage 0, rule 0, match, key \"exclude\": wanted a list, got 'x'",
        ),
        (
            'name = "a"\nsummary = "b"\nstage = [{ name = "c", rule = [{ operator = "x", match.exclude = ["re:["] }]}]',
            "stage 0, rule 0, match, exclude 0: not a regular expression, unterminated character set at position 0:"
            " 're:['",
        ),
        (
            f'name = "a"\nsummary = "b"\nlicence = 0x{"f" * 5000}\nstage = [{{ name = "c" }}]',
            'key "licence": wanted an integer of at most 64 bits',
        ),
        (f"{'.'.join('a' * 3000)} = 1", 'key "a": tables and lists nested deeper than 16'),
    ],
)
def test_a_table_of_the_wrong_shape_is_named(tmp_path: Path, text: str, fault: str) -> None:
    path = write(tmp_path, text)
    assert faults_of(path) == [f"{path}, {fault}"]


def test_a_syntax_error_gives_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "a"\nsummary = "b"\n[[stage]\n')
    assert faults_of(path) == [
        f"{path}, line 3, column 8: not valid TOML: Expected ']]' at the end of an array declaration"
    ]
    path = write(tmp_path, 'name = "a"\nsummary = [1,\n\n')
    assert faults_of(path) == [f"{path}, line 2, the last one: not valid TOML: Invalid value"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"\x80\x04\x95", "line 1: not UTF-8 text"),
        (b"a = 1\n\xff", "line 2: not UTF-8 text"),
        (b"PK\x00\x01", "a binary file"),
        (b"#" * 10_000_000, "10.0 MB is too large"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"1" * 100_000, "a number is too long"),
    ],
    ids=["empty", "blank", "pickle", "latin", "zip", "large", "deep", "long number"],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    (line,) = faults_of(write(tmp_path, content))
    assert str(tmp_path / "mine.toml") in line
    assert words in line


def test_a_misspelt_name_lists_the_shipped_recipes_and_the_closest() -> None:
    (line,) = faults_of("shiftadvit")
    assert line.startswith('unknown recipe "shiftadvit". Did you mean "shiftaddvit"')
    assert "Shipped: addernet, deepshift-ps, deepshift-q, " in line


def test_a_missing_file_names_the_shipped_recipe_of_that_name(tmp_path: Path) -> None:
    (line,) = faults_of(tmp_path / "shiftaddvit.toml")
    assert line.startswith(f'no such file: "{tmp_path / "shiftaddvit.toml"}". Did you mean "shiftaddvit"')


@pytest.mark.parametrize("name", ["some/where", "x" * 5000 + ".toml", "a\0b.toml", "", ".", "..", "~"])
def test_a_path_that_leads_nowhere_is_a_recipe_error(name: str) -> None:
    assert len(faults_of(name)) == 1


def test_a_directory_is_refused_and_its_recipes_named(tmp_path: Path) -> None:
    write(tmp_path, GOOD, name="inside.toml")
    assert faults_of(tmp_path) == [f'"{tmp_path}" is a directory; a recipe is one .toml file. It holds inside.toml.']


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    assert "is not a .toml file" in faults_of(tmp_path / "pipe.toml")[0]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert "is not a .toml file" in faults_of(write(tmp_path, GOOD, name="mine.yaml"))[0]


def test_past_fifty_faults_only_their_number_is_given(tmp_path: Path) -> None:
    lines = faults_of(write(tmp_path, GOOD + "".join(f"k{i} = 1\n" for i in range(70))))
    assert len(lines) == 51
    assert lines[-1] == "... and 20 more faults"


def test_a_recipe_object_is_checked_like_a_file() -> None:
    recipe = Recipe(name="mine", summary="A test.", stages=(Stage(name="a", finetune={"epoch": 1}),))
    expected = 'recipe "mine", stage 0, finetune, key "epoch": unknown setting. Did you mean "epochs"?'
    assert faults_of(recipe) == [expected]


def test_a_rule_may_name_an_edge_of_the_model_and_no_other_place(tmp_path: Path) -> None:
    first = GOOD.replace('within = "mlp"', 'edge = "first"')
    assert load_recipe(write(tmp_path, first)).stages[0].rules[0].match == Match(kind="linear", edge="first")
    path = write(tmp_path, GOOD.replace('within = "mlp"', 'edge = "fist"'))
    assert faults_of(path) == [
        f"{path}, stage 0, rule 0, match, key \"edge\": wanted 'first' or 'last', got 'fist'. Did you mean \"first\"?"
    ]


# -- laws

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,10}", fullmatch=True)
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
PATTERNS = TEXT.filter(lambda text: not text.startswith("re:")) | st.sampled_from(
    ["blocks.*", "re:head|fc", r"re:(a\.)?b"]
)
MATCHES = st.builds(
    Match,
    kind=st.sampled_from([None, "linear", "conv2d", "attention", "mlp"]),
    type=st.none() | TEXT,
    path=st.none() | PATTERNS,
    within=st.sampled_from([None, "attention", "mlp"]),
    edge=st.sampled_from([None, "first", "last"]),
    exclude=st.lists(PATTERNS, max_size=2).map(tuple),
)
RULES = st.builds(
    Rule,
    match=MATCHES,
    operator=TEXT.filter(lambda text: text != "keep"),
    options=st.dictionaries(TEXT, VALUES, max_size=3),
    reason=st.none() | TEXT,
    optional=st.booleans(),
    on_refusal=st.sampled_from(["error", "keep"]),
)
FINETUNE = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(0, 1000),
        "lr": st.floats(0, 1) | st.just(1),
        "clip_grad": st.just("none") | st.floats(0, 10),
        "scale": st.just([0.5, 1]),
        "aa": TEXT,
        "amp": st.booleans(),
    },
)
STAGES = st.builds(Stage, name=NAMES, rule=st.lists(RULES, max_size=3).map(tuple), finetune=FINETUNE)
RECIPES = st.builds(
    Recipe, name=NAMES, summary=TEXT, paper=st.none() | TEXT, stage=st.lists(STAGES, min_size=1, max_size=3).map(tuple)
)


def refusal_of(path: Path) -> str | None:
    try:
        load_recipe(path)
    except RecipeError as error:
        return str(error)
    return None


def as_toml(value: Any) -> str:
    """Writes a value as inline TOML: an oracle that shares no code with the loader."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return ("-" if value < 0 else "") + "inf" if math.isinf(value) else repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return str(value)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(recipe=RECIPES)
def test_a_recipe_written_as_toml_loads_as_itself(tmp_path: Path, recipe: Recipe) -> None:
    table = recipe.model_dump(by_alias=True, exclude_none=True)
    text = "".join(f"{key} = {as_toml(value)}\n" for key, value in table.items())
    assert load_recipe(write(tmp_path, text)) == recipe


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200) | st.text(alphabet="[]{}=.,\"#\n 'ab10-re:", max_size=60).map(str.encode))
def test_random_bytes_load_or_raise_a_recipe_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    refusal = refusal_of(path)
    assert refusal is None or str(path) in refusal


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    table=st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "name",
                        "summary",
                        "stage",
                        "stages",
                        "rule",
                        "rules",
                        "match",
                        "path",
                        "exclude",
                        "operator",
                        "options",
                        "finetune",
                        "epochs",
                        "scale",
                        "lr",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=30,
    )
)
def test_random_tables_load_or_raise_a_recipe_error(tmp_path: Path, table: Any) -> None:
    entries = table.items() if isinstance(table, dict) else [("stage", table)]
    text = "".join(f"{key} = {as_toml(value)}\n" for key, value in entries)
    path = write(tmp_path, text or "\n")
    refusal = refusal_of(path)
    assert refusal is None or str(path) in refusal
