"""What is wrong between a recipe and a model, in words: rules that match nothing, and sites that were refused."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from reparam.errors import PlanError
from reparam.graph.plan_index import records_of
from reparam.graph.records import Skip, StagePlan
from reparam.ops.base import OPERATORS
from reparam.recipe.schema import OPERATOR_KEEP, Recipe, Rule

_NUMBER = re.compile(r"\d+")
_PLACE = re.compile(r"stage (\d+), rule (\d+)")
#: At most this many sites of one refusal are named.
_NAMED = 3
_PARTIAL_HINT = 'To keep refused sites as they are, pass --allow-partial or set on_refusal = "keep" in the rule.'


def unused_in(stage: StagePlan, rules: Sequence[Rule]) -> list[str]:
    """The rules of a stage that matched nothing and are not optional, each with what it wants."""
    faults = []
    for where in stage.unused_rules:
        rule = rules[_position(where)]
        if not rule.optional:
            wanted = ", ".join(f'{field} = "{value}"' for field, value in _wanted(rule).items()) or "any site"
            faults.append(f"{where} matches no site of the model: it wants {wanted}")
    return faults


def refused_in(stage: StagePlan, rules: Sequence[Rule]) -> list[str]:
    """The refusals of a stage that are errors; those alike in rule, class and reason are one line."""
    groups: dict[tuple[str, str, str], list[Skip]] = {}
    for skip in stage.skips:
        if skip.cause == "refused" and skip.rule and rules[_position(skip.rule)].on_refusal == "error":
            groups.setdefault((skip.rule, skip.site.type, _NUMBER.sub("N", skip.reason)), []).append(skip)
    return [
        f"{rule}: {_named(skips, of=type_)} refused: {skips[0].reason}" for (rule, type_, _), skips in groups.items()
    ]


def raise_faults(recipe: Recipe, first: StagePlan, *, unused: Sequence[str], refused: Sequence[str]) -> None:
    """Raises PlanError with every fault and the ways out; does nothing where there is no fault.

    Args:
        recipe: what was planned.
        first: its first stage, which lists the sites of the dense model.
        unused: from `unused_in`, of all stages.
        refused: from `refused_in`, of all stages.
    """
    if unused or refused:
        hints = [_unused_hint(unused, first)] if unused else []
        hints += [_PARTIAL_HINT] if refused else []
        raise PlanError("\n".join([*(f'recipe "{recipe.name}", {fault}' for fault in (*unused, *refused)), *hints]))


def _position(where: str) -> int:
    """The number of the rule that plans call "stage S, rule R", within its stage."""
    return int(where.rpartition(" ")[2])


def _wanted(rule: Rule) -> Mapping[str, Any]:
    """The fields that a site must have for the rule, `exclude` aside; an operator takes sites of one kind."""
    kind = {} if rule.operator == OPERATOR_KEEP else {"kind": OPERATORS.get(rule.operator).kind}
    return kind | rule.match.model_dump(exclude_defaults=True, exclude={"exclude"})


def _named(skips: Sequence[Skip], *, of: str) -> str:
    names = ", ".join(f'"{skip.site.path}"' for skip in skips[:_NAMED])
    more = f" and {len(skips) - _NAMED} more" if len(skips) > _NAMED else ""
    return f"{names}{more} ({of}) {'is' if len(skips) == 1 else 'are'}"


def _unused_hint(unused: Sequence[str], first: StagePlan) -> str:
    kinds = Counter(record.site.kind for record in records_of(first))
    has = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none of any kind"
    place = next(filter(None, map(_PLACE.match, unused)), None)
    passing = f", or pass over a rule: --set stage.{place[1]}.rule.{place[2]}.optional=true" if place else ""
    return f"Sites of the model: {has}. Take another recipe, mend the match{passing}"
