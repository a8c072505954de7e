"""A model without weights: its parameters have no memory, its buffers (masks, index tables) have their values."""

from contextlib import AbstractContextManager

from accelerate import init_empty_weights
from torch import nn

from reparam.copying import copy_with, to_meta
from reparam.errors import ModelError
from reparam.models.build import build_model
from reparam.models.spec import ModelSpec
from reparam.models.state import aliases, on_meta, tie_


def build_empty(spec: ModelSpec) -> nn.Module:
    """Builds the module of `spec` with its parameters on the meta device and its buffers real; ties are kept.

    Models that compute buffers from parameters (Swin's masks) or read values while they are built cannot be made so
    directly; they are built in full once, and the weights dropped.

    Raises:
        ModelError: as `build_model`.
    """
    try:
        with without_memory():
            model = build_model(spec)
    except ModelError:
        return empty_copy(build_model(spec))
    if _meta_buffers(model):
        return empty_copy(build_model(spec))
    # accelerate wraps each registration in a Parameter of its own, which unties them: same memory, several objects.
    tie_(model, aliases(dict(model.named_parameters(remove_duplicate=False))))
    return model


def without_memory() -> AbstractContextManager[None]:
    """Within it, parameters are made on the meta device; buffers are real."""
    context: AbstractContextManager[None] = init_empty_weights(include_buffers=False)
    return context


def empty_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` with its parameters on the meta device; `model` keeps its own."""
    return copy_with(model, parameter=to_meta)


def _meta_buffers(model: nn.Module) -> set[str]:
    return set(on_meta(model)) & {name for name, _ in model.named_buffers()}
