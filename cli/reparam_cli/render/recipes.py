"""Recipes as a list, and one recipe as its stages and rules."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from reparam_cli.render.screen import columns
from reparam_cli.words import written

if TYPE_CHECKING:
    from reparam import Recipe


def list_view(recipes: Sequence[Any]) -> RenderableType:
    """Returns one row per recipe: name, summary, paper."""
    table = columns()
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    table.add_column(style="dim")
    for recipe in recipes:
        table.add_row(recipe.name, Text(recipe.summary), recipe.paper or "")
    return table


def recipe_view(recipe: "Recipe") -> RenderableType:
    """Returns the tree of a recipe: its stages, their ordered rules and their fine-tuning."""
    tree = Tree(Text.assemble((recipe.name, "bold"), f"  {recipe.paper or ''}"), guide_style="dim")
    for number, stage in enumerate(recipe.stages):
        branch = tree.add(Text.assemble(f"stage {number}: ", (stage.name, "bold")))
        branch.add(_rules_view(stage.rules) if stage.rules else Text("no rules: the model stays as it is"))
        if stage.finetune:
            branch.add(Text(f"fine-tune with {written(stage.finetune)}", style="dim"))
    return Group(Text(recipe.summary), tree)


def _rules_view(rules: Sequence[Any]) -> Table:
    table = columns()
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for number, rule in enumerate(rules):
        outcome = Text.assemble("-> ", (rule.operator, "green" if rule.operator != "keep" else ""))
        outcome.append("".join(f" {extra}" for extra in _extras(rule)))
        table.add_row(f"rule {number}", Text(_picked(rule.match.model_dump())), outcome)
    return table


def _picked(match: Mapping[str, Any]) -> str:
    given = {key: value for key, value in match.items() if value not in (None, ())}
    return written(given) if given else "every site"


def _extras(rule: Any) -> Iterator[str]:
    if rule.options:
        yield written(rule.options)
    if rule.optional:
        yield "(optional)"
    if rule.on_refusal == "keep":
        yield "(kept where refused)"
    if rule.reason:
        yield f"({rule.reason})"
