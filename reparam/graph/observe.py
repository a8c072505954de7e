"""Shows a dense model's attention: a module is given each output, at the path where a converted model has its core.

Before                                       After
    x = softmax(scale * q @ k') @ v              x = softmax(scale * q @ k') @ v
    ...                                          self.core(x as (batch, heads, tokens, width))
                                                 ...
"""

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn

from reparam.graph.attention_surgery import CoreOpener, install_core
from reparam.graph.multihead import exact_multihead, put_multihead
from reparam.graph.records import Step
from reparam.graph.rewrite import attention_by_owner
from reparam.trace.probe import ExampleInput, probe


def observe_attention_(model: nn.Module, steps: Sequence[Step], example_input: ExampleInput) -> nn.Module:
    """Gives a dense model a module at the path of each core that the steps would put in, and returns the model.

    What that module returns is the attention's output (B, H, N, E), everything that a model adds to its scores
    included. The model computes what it did, bit for bit.

    Args:
        model: dense, changed in place.
        steps: of a plan that was made for it; those that are not attention are passed over.
        example_input: makes the calls whose forwards are opened.
    """
    owners = attention_by_owner(steps)
    if not owners:
        return model
    trace, opener = probe(model, example_input), CoreOpener()
    with ExitStack() as undo:
        for path, of_owner in owners.items():
            owner, calls = model.get_submodule(path), trace.calls_of(path)
            if isinstance(owner, nn.MultiheadAttention):
                put_multihead(model, path, exact_multihead(owner, calls), undo)
                continue
            forms = {step.site.number: step.site.attention for step in of_owner if step.site.attention}
            opened = opener.open(owner, calls, path, forms)
            install_core(owner, {number: nn.Identity() for number in forms}, opened, sources=opened.observed)
        undo.pop_all()
    return model
