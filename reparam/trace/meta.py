"""Copies of a module that hold shapes but no numbers, for looking at a model without its weights."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def meta_copy(model: M) -> M:
    """Returns a deep copy on the meta device; no weight is copied, shared parameters stay shared."""
    # Plain tensor attributes are no state of the module, and `deepcopy` refuses those that carry a gradient graph.
    plain = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {id(tensor): _on_meta(tensor) for tensor in (*plain, *model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
