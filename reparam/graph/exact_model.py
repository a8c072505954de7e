"""A whole model with exact softmax cores in the places that a plan converts: what proves the surgery end to end."""

import copy

from torch import nn

from reparam.graph.attention_surgery import CoreOpener
from reparam.graph.multihead import exact_multihead
from reparam.graph.owner_swap import swap_forward
from reparam.graph.records import Plan
from reparam.ops.site import AttentionForm
from reparam.trace.probe import ExampleInput, probe


def exact_copy(model: nn.Module, plan: Plan, example_input: ExampleInput) -> nn.Module:
    """Returns a copy whose attention owners run their rewritten forwards with the model's own softmax.

    Args:
        model: the dense model; not changed.
        plan: made for it; its first conversion of each attention counts.
        example_input: as for the plan.
    """
    duplicate = copy.deepcopy(model)
    trace, opener = probe(model, example_input), CoreOpener()
    for path, forms in _forms(plan).items():
        owner, calls = duplicate.get_submodule(path), trace.calls_of(path)
        if isinstance(owner, nn.MultiheadAttention):
            duplicate.set_submodule(path, exact_multihead(owner, calls))
        else:
            swap_forward(owner, opener.open(owner, calls, path, forms).exact)
    return duplicate


def _forms(plan: Plan) -> dict[str, dict[int, AttentionForm]]:
    forms: dict[str, dict[int, AttentionForm]] = {}
    for step in plan.steps:
        if step.site.attention is not None:
            forms.setdefault(step.site.path, {})[step.site.number] = step.site.attention
    return forms
