"""What differs between two recipes' rules, as a refused resumption names it."""

from typing import Any

import pytest

from reparam.api.differences import first_rule_difference
from reparam.recipe.schema import Recipe

KEEP = {"operator": "keep", "match": {"path": "head"}}
SHIFT = {"operator": "shift_linear", "match": {"kind": "linear"}, "options": {"weight_bits": 5}}


def recipe(*stages: list[dict[str, Any]], **fields: Any) -> Recipe:
    named = [{"name": name, "rule": rules} for name, rules in zip(("a", "b"), stages, strict=False)]
    return Recipe.model_validate({"name": "r", "summary": "", "stage": named, **fields})


@pytest.mark.parametrize(
    ("was", "now", "difference"),
    [
        ([[KEEP]], [[KEEP | {"operator": "shift_linear"}]], "rule 0, operator: was 'keep', is 'shift_linear'"),
        (
            [[KEEP, SHIFT]],
            [[KEEP, SHIFT | {"options": {"weight_bits": 4}}]],
            "rule 1, options.weight_bits: was 5, is 4",
        ),
        ([[SHIFT | {"options": {}}]], [[SHIFT]], "rule 0, options.weight_bits: was not given, is 5"),
        ([[SHIFT]], [[SHIFT | {"match": {"kind": "conv2d"}}]], "rule 0, match.kind: was 'linear', is 'conv2d'"),
        ([[KEEP, SHIFT]], [[KEEP]], 'rule 1: was operator "shift_linear", is not there'),
        ([[KEEP]], [[KEEP, SHIFT]], 'rule 1: was not there, is operator "shift_linear"'),
    ],
)
def test_the_first_rule_that_differs_is_named_with_its_key(was: Any, now: Any, difference: str) -> None:
    assert first_rule_difference(recipe(*was), recipe(*now)) == f'stage 0 "a", {difference}'


def test_a_later_stage_is_named_and_a_missing_one() -> None:
    both = recipe([KEEP], [SHIFT])
    assert first_rule_difference(both, recipe([KEEP], [KEEP])) == (
        "stage 1 \"b\", rule 0, match.kind: was 'linear', is None"
    )
    assert first_rule_difference(both, recipe([KEEP])) == 'stage 1 "b": was there, is not there'


def test_what_changes_no_rule_is_no_difference() -> None:
    other = recipe([KEEP], summary="Another text.")
    assert first_rule_difference(recipe([KEEP]), other) is None
