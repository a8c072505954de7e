"""Recipes for users of the package: which are shipped, read one, check one against the installed operators."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reparam.errors import RecipeError
from reparam.recipe.load import load_recipe as load_recipe
from reparam.recipe.load import recipe_label
from reparam.recipe.schema import OPERATOR_KEEP, Recipe, Rule
from reparam.recipe.shipped import shipped_recipes
from reparam.suggest import did_you_mean

if TYPE_CHECKING:
    from reparam.ops.base import Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSummary:
    """One shipped recipe, for a list."""

    name: str
    summary: str
    paper: str | None
    path: Path


def list_recipes() -> list[RecipeSummary]:
    """Returns every shipped recipe, sorted by name. Needs no torch."""
    return [_summarise(load_recipe(name), path) for name, path in shipped_recipes().items()]


def check_recipe(source: str | Path | Recipe, *, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe and validates every operator name and option table against the installed operators.

    Raises:
        RecipeError: the recipe cannot be found or read, or else every fault in it, one line each, such as
            `my.toml, stage 0, rule 2: unknown operator "shift_liner". Did you mean "shift_linear"?`
    """
    if isinstance(overrides, str):  # whose letters would be read one by one
        raise RecipeError(f"overrides must be a list of changes, such as [{overrides!r}], got one text")
    recipe = load_recipe(source, overrides=overrides)
    label = recipe_label(source)
    faults = [
        fault
        for i, stage in enumerate(recipe.stages)
        for j, rule in enumerate(stage.rules)
        for fault in _rule_faults(rule, where=f"{label}, stage {i}, rule {j}")
    ]
    if faults:
        raise RecipeError("\n".join(faults))
    return recipe


def _summarise(recipe: Recipe, path: Path) -> RecipeSummary:
    return RecipeSummary(name=recipe.name, summary=recipe.summary, paper=recipe.paper, path=path)


def _rule_faults(rule: Rule, *, where: str) -> Iterator[str]:
    from reparam.ops.base import OPERATORS, parse_options  # here, so that listing recipes does not wait for torch

    if rule.operator == OPERATOR_KEEP:
        return
    try:
        operator: type[Operator] = OPERATORS.get(rule.operator)
    except RecipeError as error:
        yield f"{where}: {error}{did_you_mean(rule.operator, [OPERATOR_KEEP])}"
        return
    if rule.match.kind not in (None, operator.kind):
        wanted, got = operator.kind, rule.match.kind
        yield f'{where}: {rule.operator} takes sites of kind "{wanted}", but the rule picks kind "{got}"'
    try:
        parse_options(operator, rule.options, where=where)
    except RecipeError as error:
        yield str(error)
