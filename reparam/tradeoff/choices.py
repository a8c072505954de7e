"""Which sites can be converted alone, and to what: every stage of every recipe, planned on the dense model.

A later stage is planned on the model as the stage before leaves it, which is not the dense model: its sites are found
anew here. What only an earlier stage brings about (the layers of an attention that was one opaque function) has no
sensitivity of its own, and is listed.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from reparam.errors import PlanError
from reparam.graph.plan import make_plan
from reparam.graph.records import Plan, StagePlan, Step, Totals
from reparam.graph.rewrite import takes_along
from reparam.recipe.relaxed import relaxed
from reparam.recipe.schema import Kind, Recipe
from reparam.trace.probe import ExampleInput
from reparam.trace.record import Trace
from reparam.tradeoff.records import OtherSite


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One operator for one site; `steps` are several where one forward holds several sites that no rule can tell apart.

    `plan` is that of the stage alone on the dense model; `takes_along` are the paths of other choices' sites inside.
    """

    recipe: str
    stage: str
    steps: tuple[Step, ...]
    plan: Plan
    takes_along: tuple[str, ...] = ()

    @property
    def step(self) -> Step:
        """The first of the steps, which agree in all but their numbers."""
        return self.steps[0]

    @property
    def path(self) -> str:
        """Of the site."""
        return self.step.site.path

    @property
    def key(self) -> str:
        """Tells choices apart; equal for equal choices of two recipes."""
        site = self.step.site
        return json.dumps([site.kind, site.path, self.step.operator, self.step.options], sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The choices, in no order, and the sites that have none."""

    choices: tuple[Choice, ...]
    others: tuple[OtherSite, ...]


def find_choices(
    model: nn.Module, recipes: Sequence[Recipe], example_input: ExampleInput, *, allow_partial: bool = False
) -> Choices:
    """Plans every stage of the recipes on the dense model; a choice that two recipes share is made once.

    Raises:
        PlanError: a recipe that could not be planned whole, as `plan` says it; or nothing to convert.
    """
    found: dict[str, Choice] = {}
    others: dict[tuple[str, str], OtherSite] = {}
    for recipe in recipes:
        whole = make_plan(model, recipe, example_input, count=_uncounted, allow_partial=allow_partial)
        for number in range(len(recipe.stages)):
            alone = recipe.model_copy(update={"stages": (recipe.stages[number],)})
            plan = make_plan(model, relaxed(alone), example_input, count=_uncounted, allow_partial=True)
            for choice in _choices_of(recipe, plan):
                found.setdefault(choice.key, choice)
            _note_others(others, plan.stages[0])
        _note_later(others, whole)
    chosen = {(choice.step.site.kind, choice.path) for choice in found.values()}
    if not chosen:
        names = ", ".join(recipe.name for recipe in recipes)
        raise PlanError(f'no site is converted by "{names}", so there is nothing to measure; take another recipe')
    return Choices(
        choices=tuple(_with_inner(model, choice, found.values()) for choice in found.values()),
        others=tuple(site for key, site in others.items() if key not in chosen),
    )


def _uncounted(model: nn.Module, trace: Trace) -> Totals:
    return Totals(parameters=0, operations={})


def _choices_of(recipe: Recipe, plan: Plan) -> Iterable[Choice]:
    stage = plan.stages[0]
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in stage.steps:
        groups.setdefault((step.site.kind, step.site.path), []).append(step)
    for steps in groups.values():
        yield Choice(recipe=recipe.name, stage=stage.name, steps=tuple(steps), plan=plan)


def _note_others(others: dict[tuple[str, str], OtherSite], stage: StagePlan) -> None:
    """What one stage says of a site outweighs that another has no rule for it."""
    for skip in stage.skips:
        key = (skip.site.kind, skip.site.path)
        if key not in others or others[key].cause == "no rule":
            others[key] = _other(skip.site.path, skip.site.kind, skip.cause, skip.reason)


def _note_later(others: dict[tuple[str, str], OtherSite], whole: Plan) -> None:
    known = {(step.site.kind, step.site.path) for step in whole.stages[0].steps}
    for stage in whole.stages[1:]:
        for step in stage.steps:
            key = (step.site.kind, step.site.path)
            reason = f'stage "{stage.name}" finds it only after the stages before it; alone it cannot be converted'
            if key not in known:
                others.setdefault(key, _other(step.site.path, step.site.kind, "later", reason))


def _other(path: str, kind: Kind, cause: str, reason: str) -> OtherSite:
    return OtherSite(path=path, kind=kind, cause=cause, reason=reason)


def _with_inner(model: nn.Module, choice: Choice, others: Iterable[Choice]) -> Choice:
    sites = {other.path: other.step.site for other in others}
    inner = [path for path, site in sites.items() if any(takes_along(model, step, site) for step in choice.steps)]
    return Choice(
        recipe=choice.recipe, stage=choice.stage, steps=choice.steps, plan=choice.plan, takes_along=tuple(inner)
    )
