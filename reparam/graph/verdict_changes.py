"""What to write for another outcome: rules ready to paste, for each verdict of a plan."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reparam.errors import OptionError
from reparam.graph.explanation import Change
from reparam.graph.plan_index import records_of
from reparam.graph.records import IDLE, UNREAD, Plan, Skip, Step
from reparam.graph.selector import picks
from reparam.ops.base import OPERATORS, parse_options
from reparam.ops.site import Site
from reparam.recipe.schema import OPERATOR_KEEP, Recipe, Rule

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where in a plan advice is wanted: the stage, the paths that the advice is for, and how rules write them."""

    plan: Plan
    stage: int
    paths: tuple[str, ...]
    pattern: str

    def put(self, rule: str) -> str:
        """How to give way before a rule: a rule that would be left without a site is an error, unless optional."""
        stage = self.plan.stages[self.stage]
        taken = {record.site.path for record in records_of(stage) if record.rule == rule}
        if taken <= {*self.paths} and not rule_at(self.plan.recipe, rule).optional:
            return f"put this in place of {rule}"
        return f"put this before {rule}"


def changes_of_step(step: Step, spot: Spot) -> Iterator[Change]:
    """How to keep a site that is converted."""
    yield Change(text=f"to keep it, {spot.put(step.rule)}", toml=rule_toml(spot.pattern, step.site, OPERATOR_KEEP))


def changes_of_skip(skip: Skip, spot: Spot, *, around: Sequence[Step]) -> Iterator[Change]:
    """How to convert a site that stays, or to accept that it does; `around` are the steps that convert an owner."""
    hindrance = skip.site.refusal or skip.site.no_gain or (IDLE if skip.site.idle else None)
    if skip.cause == "refused":
        yield from _changes_of_refusal(skip, spot)
    elif skip.cause == "idle" and skip.reason == UNREAD:
        yield Change(text="nothing to change: what read it is converted")
    elif skip.cause == "idle":
        yield Change(text="nothing to change: it costs nothing. If it runs on other inputs, pass one as example_input")
    elif skip.cause == "no gain":
        yield Change(text="nothing to change: no operator would gain anything here")
    elif hindrance is not None:
        yield Change(text=f"no operator can take it: {hindrance}")
    else:
        yield from _ways_to_convert(skip, spot, around)


def rule_toml(pattern: str, site: Site, operator: str, options: dict[str, Any] | None = None) -> str:
    """A rule for one path as TOML. `pattern` is a glob, or "re:" and an expression."""
    # Attention and an MLP may stand in one module.
    kind = f', kind = "{site.kind}"' if site.kind in ("attention", "mlp") else ""
    lines = ["[[stage.rule]]", f"match = {{ path = {json.dumps(pattern)}{kind} }}", f'operator = "{operator}"']
    if options:
        lines.append(f"options = {_toml(options)}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items())} }}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list | tuple) else json.dumps(value)


def as_pattern(path: str) -> str:
    """The pattern that matches one path only."""
    return f"re:{re.escape(path)}" if _GLOB.search(path) else path


def rule_at(recipe: Recipe, where: str) -> Rule:
    """The rule that plans call "stage S, rule R"."""
    stage, rule = (int(n) for n in re.findall(r"\d+", where))
    return recipe.stages[stage].rules[rule]


def _changes_of_refusal(skip: Skip, spot: Spot) -> Iterator[Change]:
    assert skip.rule is not None
    rule = rule_at(spot.plan.recipe, skip.rule)
    dropping = _options_that_drop(skip, rule)
    if dropping is not None:
        toml = rule_toml(spot.pattern, skip.site, rule.operator, dropping)
        yield Change(text=f"to convert it without what is in the way, {spot.put(skip.rule)}", toml=toml)
    if rule.on_refusal == "error":
        toml = rule_toml(spot.pattern, skip.site, OPERATOR_KEEP)
        yield Change(text=f"to accept that it stays, {spot.put(skip.rule)}", toml=toml)
        yield Change(text=f'or pass --allow-partial, or add on_refusal = "keep" to {skip.rule}')


def _options_that_drop(skip: Skip, rule: Rule) -> dict[str, Any] | None:
    """The rule's options with leave to drop what the attention does around its core; None where that is no way out."""
    cls, form = OPERATORS.get(rule.operator), skip.site.attention
    allowed = getattr(parse_options(cls, rule.options, where=str(skip.rule)), "drop", None)
    if allowed is None or form is None or set(form.dropped) <= set(allowed):
        return None
    options = {**rule.options, "drop": [*dict.fromkeys((*allowed, *form.dropped))]}
    try:
        parse_options(cls, options, where=str(skip.rule))
    except OptionError:  # some things may not be dropped at all
        return None
    return options


def _ways_to_convert(skip: Skip, spot: Spot, around: Sequence[Step]) -> Iterator[Change]:
    found = _operator_for(skip.site, spot)
    if found is None:
        yield Change(text=f'no operator takes sites of kind "{skip.site.kind}" yet')
        return
    operator, options = found
    toml = rule_toml(spot.pattern, skip.site, operator, options)
    if around:
        keep = rule_toml(as_pattern(around[0].site.path), around[0].site, OPERATOR_KEEP)
        yield Change(text=f"to convert it alone, put this before {around[0].rule}", toml=f"{keep}\n\n{toml}")
    else:
        place = spot.put(skip.rule) if skip.rule else f"put this into stage {spot.stage}"
        yield Change(text=f"to make it {operator}, {place}", toml=toml)


def _operator_for(site: Site, spot: Spot) -> tuple[str, dict[str, Any]] | None:
    """An operator for the site's kind: of a rule that picks the site, of any rule, or any that is installed."""
    stages = spot.plan.recipe.stages
    rules = [*stages[spot.stage].rules, *(rule for stage in stages for rule in stage.rules)]
    fit = [r for r in rules if r.operator != OPERATOR_KEEP and OPERATORS.get(r.operator).kind == site.kind]
    fit.sort(key=lambda rule: not picks(rule.match, site))
    if fit:
        return fit[0].operator, fit[0].options
    return next(((name, {}) for name, operator in OPERATORS if operator.kind == site.kind), None)
