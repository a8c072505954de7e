"""Copies of a module tree whose tensors are replaced on the way, so that no weight is copied only to be dropped."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copy_with(
    model: M, *, parameter: Callable[[Tensor], Tensor], buffer: Callable[[Tensor], Tensor] = torch.clone
) -> M:
    """Deep-copies `model`, passing each parameter and buffer through a function; what is shared stays shared.

    Plain tensor attributes go the way of buffers: they are no state of the module, and `deepcopy` refuses those that
    carry a gradient graph.
    """
    replaced: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):
                replaced[id(value)] = buffer(value.detach())
    for own in model.parameters():
        replaced[id(own)] = nn.Parameter(parameter(own.detach()), requires_grad=own.requires_grad)
    for tensor in model.buffers():
        replaced[id(tensor)] = buffer(tensor.detach())
    return copy.deepcopy(model, replaced)


def meta_copy(model: M) -> M:
    """Returns a deep copy on the meta device, for looking at a model without its weights; none is copied."""
    return copy_with(model, parameter=to_meta, buffer=to_meta)


def to_meta(tensor: Tensor) -> Tensor:
    """The same shape and dtype without data."""
    return tensor.to("meta")
