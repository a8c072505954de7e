"""A plan as a tree: stages, what changes, what stays and why, and the totals before and after."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from reparam_cli.render.fold import fold_paths
from reparam_cli.render.options import non_default
from reparam_cli.render.screen import amount, change, columns
from reparam_cli.render.site_table import PathList, SiteTable
from reparam_cli.words import counted, written

if TYPE_CHECKING:
    from reparam import Plan

_RULE = re.compile(r"stage \d+, (rule \d+)")
_INDEX = re.compile(r"(?<=[._])\d+(?=\.|\b)")
KEEP = "keep"
_ORDINALS = {1: "2nd", 2: "3rd"}
#: Causes that the reason alone does not tell.
_NAMED_CAUSES = ("keep", "refused", "no gain", "idle")
_VERBS = {"mul": "multiplications", "add": "additions", "shift": "shifts"}


def plan_view(plan: "Plan", *, model: str) -> RenderableType:
    """Returns the tree of a plan; `model` is the name that the user gave."""
    shape = " x ".join(str(size) for size in plan.input_shape[1:])
    tree = Tree(Text.assemble((model, "bold"), f" with recipe {plan.recipe.name}, input {shape}"), guide_style="dim")
    if not plan.steps and any(rule.operator != KEEP for stage in plan.recipe.stages for rule in stage.rules):
        tree.add(Text("This recipe changes nothing in this model.", style="bold yellow"))
    for note in plan.unseen:
        tree.add(Text(f"not seen: {note}", style="yellow"))
    for number, stage in enumerate(plan.stages):
        branch = tree.add(Text.assemble(f"stage {number}: ", (stage.name, "bold")))
        if stage.steps:
            title = Text(f"changes {counted(len(stage.steps), 'site')}", style="green")
            branch.add(Group(title, _steps_view(stage.steps)))
        else:
            branch.add(Text("changes nothing", style="yellow"))
        if stage.skips:
            branch.add(Group(Text(f"keeps {counted(len(stage.skips), 'site')}"), _skips_view(stage.skips)))
        if stage.orphans:
            title = Text(f"leaves {counted(len(stage.orphans), 'parameter')} unread, and frozen", style="dim")
            branch.add(Group(title, PathList([line.text for line in fold_paths(stage.orphans)])))
        for rule in stage.unused_rules:
            branch.add(Text(f"{_short_rule(rule)} matched nothing (it is optional)", style="yellow"))
    tree.add(_totals_view(plan))
    return tree


def _steps_view(steps: Sequence[Any]) -> SiteTable:
    groups: dict[tuple[str, ...], list[str]] = {}
    for step in steps:
        options = written(non_default(step.operator, step.options))
        key = (step.operator, options, step.remark or "", _short_rule(step.rule), _which(step.site))
        groups.setdefault(key, []).append(step.site.path)
    rows = []
    for (operator, options, remark, rule, which), paths in groups.items():
        outcome = Text.assemble("-> ", (operator, "green"), f" {options}" if options else "")
        outcome.append(f" ({remark})" if remark else "", style="dim")
        rows += [(text, str(count), outcome, rule) for text, count in _lines(paths, which)]
    return SiteTable(rows)


def _skips_view(skips: Sequence[Any]) -> SiteTable:
    groups: dict[tuple[str, ...], list[Any]] = {}
    for skip in skips:
        reason = _INDEX.sub("N", skip.reason)
        key = (skip.site.kind, skip.cause, reason, _short_rule(skip.rule or ""), _which(skip.site))
        groups.setdefault(key, []).append(skip)
    rows = []
    for (kind, cause, common, rule, which), group in groups.items():
        reasons = {skip.reason for skip in group}
        reason = reasons.pop() if len(reasons) == 1 else common
        text = f"{cause}: {reason}" if cause in _NAMED_CAUSES else reason
        outcome = Text(text, style="yellow" if cause == "refused" else "dim")
        lines = _lines([skip.site.path for skip in group], which)
        rows += [(line, f"{count} {kind}", outcome, rule) for line, count in lines]
    return SiteTable(rows)


def _which(site: Any) -> str:
    """Tells the second site of one kind in one forward from the first: "(2nd attention)"."""
    return f" ({_ORDINALS.get(site.number, f'{site.number + 1}th')} {site.kind})" if site.number else ""


def _lines(paths: Sequence[str], which: str) -> Iterator[tuple[str, int]]:
    for line in fold_paths(paths):
        yield f"{line.text or '(the model)'}{which}", line.count


def _totals_view(plan: "Plan") -> Group:
    table = columns()
    for justify in ("left", "right", "left", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    rows = [("parameters", plan.before.parameters, plan.after.parameters)]
    for verb, plural in _VERBS.items():
        rows.append((plural, _total(plan.before.operations, verb), _total(plan.after.operations, verb)))
    for name, before, after in rows:
        if before or after:
            bold = "bold" if name in ("parameters", "multiplications") else ""
            table.add_row(Text(name, style=bold), amount(before), "->", amount(after), change(before, after))
    notes = [
        Text(f"not counted {when}: {written(totals.uncounted)}", style="yellow")
        for when, totals in (("before", plan.before), ("after", plan.after))
        if totals.uncounted
    ]
    return Group(Text("totals for one image"), table, *notes)


def _total(operations: Mapping[str, int], verb: str) -> int:
    return sum(n for key, n in operations.items() if key.startswith(f"{verb}."))


def _short_rule(rule: str) -> str:
    found = _RULE.fullmatch(rule)
    return found[1] if found else rule
