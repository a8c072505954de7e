"""The latencies of experts in a plan: replaced where they were measured, read back from the recipe's rules."""

from collections.abc import Mapping

from reparam.graph.plan import label
from reparam.graph.records import Plan, StagePlan, Step
from reparam.ops.base import OPERATORS, parse_options
from reparam.ops.moe_options import MoeMlpOptions

#: The path and number of a site, and the time of the multiply and of the shift expert, in any unit.
Place = tuple[str, int]
Pair = tuple[float, float]


def with_latencies(plan: Plan, latencies: Mapping[Place, Pair]) -> Plan:
    """Returns the plan with the `latency` option of the mixtures at these places replaced.

    A model that is rebuilt by it gets routers with these latencies. What the plan counted stays: its totals and remarks
    are those of the load that the recipe asked for.

    Args:
        plan: of a recipe with mixtures.
        latencies: place of a mixture's site -> the latencies of its experts.
    """
    stages = tuple(_stage_with(stage, latencies) for stage in plan.stages)
    return plan.model_copy(update={"stages": stages})


def recipe_latencies(plan: Plan) -> dict[Place, Pair]:
    """Place of each mixture's site -> the latencies that the recipe's rule for it says."""
    rules = {
        label(number, position): rule
        for number, stage in enumerate(plan.recipe.stages)
        for position, rule in enumerate(stage.rules)
    }
    return {_place(step): _options(step, rules[step.rule].options).latency for step in plan.steps if _is_mixture(step)}


def _stage_with(stage: StagePlan, latencies: Mapping[Place, Pair]) -> StagePlan:
    return stage.model_copy(update={"steps": tuple(_step_with(step, latencies) for step in stage.steps)})


def _step_with(step: Step, latencies: Mapping[Place, Pair]) -> Step:
    latency = latencies.get(_place(step))
    if latency is None or not _is_mixture(step):
        return step
    options = _options(step, {**step.options, "latency": latency})
    return step.model_copy(update={"options": options.model_dump(mode="json")})


def _options(step: Step, options: dict[str, object]) -> MoeMlpOptions:
    parsed = parse_options(OPERATORS.get(step.operator), options, where=step.rule)
    assert isinstance(parsed, MoeMlpOptions)
    return parsed


def _is_mixture(step: Step) -> bool:
    return issubclass(OPERATORS.get(step.operator).Options, MoeMlpOptions)


def _place(step: Step) -> Place:
    return step.site.path, step.site.number
