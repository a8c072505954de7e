"""A copy of the dense model with one choice carried out: what the sensitivity of a site is measured on."""

import copy

from torch import nn

from reparam.graph.rewrite import rewrite
from reparam.graph.verify import seeded
from reparam.ops.routing import Router, send_all_to_shift_
from reparam.trace.probe import ExampleInput
from reparam.tradeoff.choices import Choice

#: A router that was never trained sends every token to the multiply expert, which is the dense MLP.
ALL_SHIFTED = "all tokens to the shift expert"


def convert_one(dense: nn.Module, choice: Choice, example_input: ExampleInput) -> nn.Module:
    """Returns a copy in eval mode with one site converted and verified; routers send every token to the shift expert.

    Random parameters, such as an adder's that starts from nothing, are drawn under one seed.
    """
    stage = choice.plan.stages[0].model_copy(update={"steps": choice.steps, "orphans": ()})
    plan = choice.plan.model_copy(update={"stages": (stage,)})
    with seeded():
        model = rewrite(copy.deepcopy(dense), plan, example_input)
    send_all_to_shift_(model)
    return model.eval()


def routing_of(model: nn.Module) -> str | None:
    """How a model that `convert_one` made sends its tokens; None without routers."""
    return ALL_SHIFTED if any(isinstance(module, Router) for module in model.modules()) else None
