import pytest

from reparam.graph.selector import mismatch, path_matches, picks
from reparam.ops.site import Site
from reparam.recipe.schema import Match

SITE = Site(
    path="blocks.0.attn.qkv",
    kind="linear",
    type="torch.nn.modules.linear.Linear",
    input_shape=(2, 16),
    output_shape=(2, 48),
    within="attention",
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "linear"},
        {"type": "torch.nn.*"},
        {"type": "*.Linear"},
        {"path": "blocks.*.qkv"},
        {"path": "blocks.?.attn.*"},
        {"path": r"re:blocks\.\d+\.attn\.(qkv|proj)"},
        {"within": "attention"},
        {"exclude": ("blocks.1.*",)},
        {"kind": "linear", "path": "*qkv", "within": "attention"},
    ],
    ids=str,
)
def test_a_site_is_picked_when_every_field_holds(fields: dict[str, object]) -> None:
    assert picks(Match.model_validate(fields), SITE)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "conv2d"},
        {"type": "Linear"},
        {"path": "qkv"},
        {"path": "Blocks.*"},
        {"path": r"re:blocks\.\d+"},
        {"path": "re:qkv"},
        {"within": "mlp"},
        {"exclude": ("*.qkv",)},
        {"exclude": ("head", r"re:.*\.qkv")},
        {"kind": "linear", "path": "*qkv", "within": "mlp"},
    ],
    ids=str,
)
def test_a_site_is_not_picked_when_one_field_fails(fields: dict[str, object]) -> None:
    assert not picks(Match.model_validate(fields), SITE)


def test_a_dot_is_only_a_dot_in_a_glob_and_any_character_in_a_regular_expression() -> None:
    assert not path_matches("a.b", "axb")
    assert path_matches("re:a.b", "axb")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "linear", "path": "blocks.*"}, None),
        ({"kind": "mlp", "path": "nowhere"}, 'it wants kind = "mlp", and this is a site of kind "linear"'),
        ({"type": "*.Conv2d"}, 'it wants type = "*.Conv2d", and this is a torch.nn.modules.linear.Linear'),
        ({"path": "head", "within": "mlp"}, 'it wants path = "head"'),
        ({"within": "mlp"}, 'it wants within = "mlp", and this lies within "attention"'),
        ({"path": "blocks.*", "exclude": ("head", "*.qkv")}, 'it excludes "*.qkv"'),
    ],
    ids=str,
)
def test_the_first_field_that_does_not_hold_is_named(fields: dict[str, object], words: str | None) -> None:
    assert mismatch(Match.model_validate(fields), SITE) == words


def test_a_site_outside_of_every_block_says_so() -> None:
    alone = SITE.model_copy(update={"within": None})
    wants = 'it wants within = "mlp", and this lies within no attention and no mlp'
    assert mismatch(Match(within="mlp"), alone) == wants


FIRST, LAST = {"is_first": True}, {"is_last": True}


@pytest.mark.parametrize(
    ("place", "edge", "words"),
    [
        (FIRST, "first", None),
        (LAST, "last", None),
        (FIRST | LAST, "first", None),
        (FIRST | LAST, "last", None),
        ({}, "first", 'it wants edge = "first", and other layers come before'),
        (LAST, "first", 'it wants edge = "first", and other layers come before'),
        ({}, "last", 'it wants edge = "last", and other layers come behind'),
        (FIRST, "last", 'it wants edge = "last", and other layers come behind'),
    ],
    ids=str,
)
def test_an_edge_picks_the_first_or_the_last_layers(place: dict[str, bool], edge: str, words: str | None) -> None:
    match, site = Match.model_validate({"kind": "linear", "edge": edge}), SITE.model_copy(update=place)
    assert mismatch(match, site) == words
    assert picks(match, site) is (words is None)


def test_an_edge_is_asked_for_beside_the_other_fields() -> None:
    stem = SITE.model_copy(update=FIRST)
    assert picks(Match(edge="first", path="blocks.*", within="attention"), stem)
    assert not picks(Match(edge="first", path="head"), stem)
    assert not picks(Match(edge="first", exclude=("*.qkv",)), stem)
    assert picks(Match(), stem)
