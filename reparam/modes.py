"""Models in eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """While open, all modules of the models are in eval mode; afterwards each has the mode that it had.

    The way back goes through `train()`, because some models drop caches of their weights there (LeViT's biases).
    """
    before = [(model, model.training) for model in models]
    flags = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()  # not chained: some models' own `train`, and so their `eval`, returns nothing
    try:
        yield
    finally:
        for model, was_training in before:
            model.train(was_training)
        for module, flag in flags:
            module.training = flag
