"""What differs between two nested tables or two recipes' rules, key by key, as a message names it."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from reparam.recipe.schema import Recipe, Rule, Stage


def flat_table(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one, with dotted keys: {"data": {"root": "x"}} is {"data.root": "x"}."""
    return dict(_flat(values, prefix))


def first_rule_difference(was: Recipe, now: Recipe) -> str | None:
    """Says which rule is the first that differs and in what, or None: settings and texts about the recipe do not count.

    Such as `stage 0 "attention", rule 1, options.conv_kernel: was 3, is 5`.
    """
    for i, (old, new) in enumerate(zip_longest(was.stages, now.stages)):
        found = _in_stage(old, new)
        if found:
            return f'stage {i} "{(old or new).name}"{found}'
    return None


def _in_stage(was: Stage | None, now: Stage | None) -> str | None:
    if was is None or now is None:
        return f": was {'not there' if was is None else 'there'}, is {'not there' if now is None else 'there'}"
    for i, (old, new) in enumerate(zip_longest(was.rules, now.rules)):
        if old != new:
            return f", rule {i}{_in_rule(old, new)}"
    return None


def _in_rule(was: Rule | None, now: Rule | None) -> str:
    if was is None or now is None:
        old, new = ("not there" if rule is None else f'operator "{rule.operator}"' for rule in (was, now))
        return f": was {old}, is {new}"
    one, other = (flat_table(rule.model_dump(mode="json")) for rule in (was, now))
    key = next(key for key in (one | other) if key not in one or key not in other or one[key] != other[key])
    old, new = (repr(table[key]) if key in table else "not given" for table in (one, other))
    return f", {key}: was {old}, is {new}"


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
