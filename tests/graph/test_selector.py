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
