"""Copies of a module tree whose tensors are replaced on the way, so that no weight is copied only to be dropped."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def copy_with(
    model: nn.Module, *, parameter: Callable[[Tensor], Tensor], buffer: Callable[[Tensor], Tensor] = torch.clone
) -> nn.Module:
    """Deep-copies `model`, passing each parameter and buffer through a function; what is shared stays shared."""
    replaced: dict[int, Any] = {}
    for own in model.parameters():
        replaced[id(own)] = nn.Parameter(parameter(own.detach()), requires_grad=own.requires_grad)
    for tensor in model.buffers():
        replaced[id(tensor)] = buffer(tensor.detach())
    return copy.deepcopy(model, replaced)


def to_meta(tensor: Tensor) -> Tensor:
    """The same shape and dtype without data."""
    return tensor.to("meta")
