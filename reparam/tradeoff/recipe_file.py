"""A mix of choices as a recipe: stages and settings of the recipes that they come from, rules for exactly their sites.

Choices of one operator with one set of options become one rule. It names its sites by path. Only where it takes every
site of its kind, in the first stage, does it say just the kind: later stages meet sites that earlier ones made.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reparam.ops.base import OPERATORS
from reparam.recipe.schema import OPERATOR_KEEP, Match, Recipe, Rule, Stage
from reparam.tradeoff.folding import path_pattern
from reparam.tradeoff.records import Sensitivity, SiteSensitivity

#: A comment on the choices of one rule, by their places in the analysis.
Comment = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedRecipe:
    """A recipe, and for each rule of each stage the places of its choices in the analysis."""

    recipe: Recipe
    places: tuple[tuple[tuple[int, ...], ...], ...]


def mixed_recipe(found: Sensitivity, taken: Sequence[int], *, name: str, summary: str) -> MixedRecipe:
    """Returns the recipe that converts the taken choices and nothing else; a mix of none keeps every layer.

    Stages come in the order of the recipes. Those of one name are one stage, with the settings of the first.
    """
    stages: list[Stage] = []
    places: list[tuple[tuple[int, ...], ...]] = []
    for planned in _stages(found):
        mine = [index for index in taken if found.sites[index].stage == planned.name]
        groups = tuple(_grouped(found.sites, mine))
        if groups:
            rules = tuple(_rule(found, group, is_first=not stages) for group in groups)
            stages.append(planned.model_copy(update={"rules": rules}))
            places.append(groups)
    if not stages:
        nothing = Rule(operator=OPERATOR_KEEP, reason="the search converts nothing under these bounds", optional=True)
        stages, places = [Stage(name="nothing", rules=(nothing,))], [((),)]
    recipe = Recipe(name=name, summary=summary, paper=_paper(found, taken), stages=tuple(stages))
    return MixedRecipe(recipe=recipe, places=tuple(places))


def _stages(found: Sensitivity) -> Iterable[Stage]:
    named: dict[str, Stage] = {}
    for recipe in found.subject.recipes:
        for stage in recipe.stages:
            named.setdefault(stage.name, stage)
    return named.values()


def written(mixed: MixedRecipe, *, head: Sequence[str], comment: Comment) -> str:
    """The recipe as TOML.

    Args:
        mixed: what to write.
        head: lines of the comment that begins the file.
        comment: what is said above a rule.
    """
    recipe = mixed.recipe
    lines = [f"# {line}" for line in head]
    lines += [f"{key} = {_value(getattr(recipe, key))}" for key in ("name", "summary", "paper") if getattr(recipe, key)]
    for stage, groups in zip(recipe.stages, mixed.places, strict=True):
        lines += ["", "[[stage]]", f"name = {_value(stage.name)}"]
        for rule, group in zip(stage.rules, groups, strict=True):
            lines += ["", *([f"# {comment(group)}"] if group else []), *_rule_lines(rule)]
        if stage.finetune:
            lines += ["", "[stage.finetune]", *(f"{key} = {_value(value)}" for key, value in stage.finetune.items())]
    return "\n".join(lines) + "\n"


def _grouped(sites: Sequence[SiteSensitivity], indices: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Choices of one kind, operator and set of options, in the order in which they first come."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        site = sites[index]
        groups.setdefault(json.dumps([site.kind, site.operator, site.options], sort_keys=True), []).append(index)
    return (tuple(group) for group in groups.values())


def _rule(found: Sensitivity, group: Sequence[int], *, is_first: bool) -> Rule:
    site = found.sites[group[0]]
    paths = {found.sites[index].path for index in group}
    of_kind = {s.path for s in found.sites if s.kind == site.kind}
    of_kind |= {s.path for s in found.other_sites if s.kind == site.kind}
    is_whole_kind = is_first and len(paths) > 1 and paths == of_kind
    match = Match(kind=site.kind, path=None if is_whole_kind else path_pattern(paths))
    return Rule(match=match, operator=site.operator, options=_given_options(site))


def _given_options(site: SiteSensitivity) -> dict[str, Any]:
    """The options that are not the operator's defaults."""
    defaults = OPERATORS.get(site.operator).Options().model_dump(mode="json")
    return {key: value for key, value in site.options.items() if defaults.get(key) != value}


def _paper(found: Sensitivity, taken: Sequence[int]) -> str | None:
    """The paper that the mix is after, where it is one."""
    names = {found.sites[index].recipe for index in taken}
    papers = {recipe.paper for recipe in found.subject.recipes if recipe.name in names}
    return papers.pop() if len(papers) == 1 else None


def _rule_lines(rule: Rule) -> Iterator[str]:
    yield "[[stage.rule]]"
    match = rule.match.model_dump(exclude_defaults=True)
    if match:
        yield f"match = {_value(match)}"
    yield f"operator = {_value(rule.operator)}"
    if rule.reason:
        yield f"reason = {_value(rule.reason)}"
    if rule.optional:
        yield "optional = true"
    if rule.options:
        yield f"options = {_value(rule.options)}"


def _value(value: Any) -> str:
    """A TOML value; one that TOML cannot write does not come out of a recipe."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str) and "\\" in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)
