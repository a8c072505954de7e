"""The modules of a model before and after its conversion, as one tree, and what the plan says about each."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from reparam.graph.records import Plan, Skip, Step
from reparam.ops.base import OPERATORS
from reparam.recipe.schema import Frozen


class Fate(Frozen):
    """What the plan did at one place. `operator` is None where it stays; `why` is the reason, or the step's remark.

    `rule` is where the recipe says so, such as "stage 0, rule 1"; `options` are those that differ from the operator's
    defaults.
    """

    operator: str | None
    stage: str
    rule: str | None
    why: str | None
    options: dict[str, Any] = Field({})


class ModuleNode(Frozen):
    """One module; class names and numbers of parameters before and after; it is new where `before` is None."""

    name: str
    before: str | None
    after: str
    parameters_before: int | None
    parameters_after: int
    fates: tuple[Fate, ...] = ()
    children: tuple["ModuleNode", ...] = ()


def module_tree(
    dense: nn.Module | None, model: nn.Module, plan: Plan | None, *, has_measured_shares: bool = False
) -> ModuleNode:
    """Returns the tree of `model`, each module beside the dense one at its path.

    Modules without parameters and without a fate are left out. Parts of a dense module that was swapped as a whole are
    not told: they are gone, or have moved into what stands there now.

    Args:
        dense: the original, None where it is not at hand.
        model: what it became, or a dense model.
        plan: the stages that `model` has been through.
        has_measured_shares: the shares of the experts were measured since, so what remarks say of modelled ones is left
            out.
    """
    before = {} if dense is None else dict(dense.named_modules())
    fates = {} if plan is None else _fates(plan, has_measured_shares=has_measured_shares)
    return _node("", "", model, before, fates)


def _node(
    path: str, name: str, module: nn.Module, before: Mapping[str, nn.Module], fates: Mapping[str, tuple[Fate, ...]]
) -> ModuleNode:
    prefix = f"{path}." if path else ""
    nodes = [_node(f"{prefix}{name}", name, child, before, fates) for name, child in module.named_children()]
    return ModuleNode(
        name=name,
        before=_type(before.get(path)),
        after=type(module).__name__,
        parameters_before=_parameters(before.get(path)),
        parameters_after=_parameters(module) or 0,
        fates=fates.get(path, ()),
        children=tuple(node for node in nodes if node.fates or node.parameters_before or node.parameters_after),
    )


def _type(module: nn.Module | None) -> str | None:
    return None if module is None else type(module).__name__


def _parameters(module: nn.Module | None) -> int | None:
    return None if module is None else sum(parameter.numel() for parameter in module.parameters())


def _fates(plan: Plan, *, has_measured_shares: bool) -> dict[str, tuple[Fate, ...]]:
    """By path: every conversion, or else why the last stage left it; what is inside a swapped module has none."""
    steps: dict[str, tuple[Fate, ...]] = {}
    skips: dict[str, tuple[Fate, ...]] = {}
    for stage in plan.stages:
        for step in stage.steps:
            steps[step.site.path] = (
                *steps.get(step.site.path, ()),
                _converted(step, stage.name, has_measured_shares=has_measured_shares),
            )
        for skip in stage.skips:
            if skip.cause != "inside":
                skips[skip.site.path] = (_kept(skip, stage.name),)
    return skips | steps


def _converted(step: Step, stage: str, *, has_measured_shares: bool) -> Fate:
    usual = OPERATORS.get(step.operator).Options().model_dump(mode="json")
    options = _differing(step.options, usual)
    why = _without_modelled(step.remark or "") or None if has_measured_shares else step.remark
    return Fate(operator=step.operator, stage=stage, rule=step.rule, why=why, options=options)


def _without_modelled(remark: str) -> str:
    return "; ".join(part for part in remark.split("; ") if not part.endswith(": modelled"))


def _differing(options: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _differing(value, usual[key]) for key, value in options.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in options.items() if key not in inner and value != usual.get(key)}
    return plain | {key: value for key, value in inner.items() if value}


def _kept(skip: Skip, stage: str) -> Fate:
    return Fate(operator=None, stage=stage, rule=skip.rule, why=skip.reason)
