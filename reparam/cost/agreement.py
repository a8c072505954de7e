"""Whether two runs compute the same: the relative error of all outputs together.

error = ||y - r|| / ||r||,   r the reference's outputs, y the other's, over all elements of all outputs
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def outputs_of(answer: object) -> list[Tensor]:
    """The floating-point outputs in what an engine gives, tensors or arrays, as float32 on the CPU, in their order."""
    leaves = pytree.tree_leaves(list(answer.values()) if isinstance(answer, Mapping) else answer)
    # Copied, because engines reuse the memory of their outputs in the next run.
    tensors = [_copied(leaf) for leaf in leaves if hasattr(leaf, "shape")]
    return [tensor.float() for tensor in tensors if tensor.is_floating_point()]


def relative_error(outputs: list[Tensor], reference: list[Tensor]) -> float:
    """Returns the relative error; infinite where numbers or shapes of outputs differ, or anything is not finite."""
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in reference]:
        return math.inf
    difference = _norm([a - b for a, b in zip(outputs, reference, strict=True)])
    size = _norm(reference)
    error = difference / size if size else math.inf if difference else 0.0
    return error if math.isfinite(error) else math.inf


def _copied(leaf: Any) -> Tensor:
    return leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else torch.tensor(leaf)


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
