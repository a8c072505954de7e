"""Tunes what stands around a block's rounded weights, so that its output follows the dense block's.

Biases, norms, and an attention's thresholds, scales and convolution take steps of Adam on the squared error of the
block's output (BRECQ's blocks, arXiv:2102.05426). The rounding of weights and the channels' offsets stay.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.descent import descend_
from reparam.ops.shift_layer import ShiftLayer

_LR = 1e-3


class BlockFit(NamedTuple):
    """|y - y'| / |y| of a block's output, tuned and before, on all batches."""

    error: float
    before: float


@torch.no_grad()
def tune_block_(block: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor], *, steps: int) -> BlockFit:
    """Tunes a block in eval mode, and takes everything back where that does not bring the output closer.

    Args:
        block: takes one tensor and returns one.
        inputs: batches, as the converted model gives them.
        targets: what the dense block made of the same images.
        steps: of Adam, each on one batch in turns; the rate falls along a cosine.
    """
    parameters, before = list(_tunable(block)), _error(block, inputs, targets)
    if not parameters:
        return BlockFit(error=before, before=before)
    kept = [parameter.clone() for parameter in parameters]

    def loss(step: int) -> Tensor:
        x, y = inputs[step % len(inputs)], targets[step % len(targets)]
        found: Tensor = (block(x) - y).square().mean() / y.square().mean().clamp_min(1e-12)
        return found

    descend_([(parameters, _LR)], loss, steps=steps)
    after = _error(block, inputs, targets)
    if after < before:
        return BlockFit(error=after, before=before)
    for parameter, value in zip(parameters, kept, strict=True):
        parameter.copy_(value)
    return BlockFit(error=before, before=before)


def gives(block: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a block makes `y` of `x` alone: one that is given more than a tensor cannot be tuned by itself."""
    try:
        found = block(x)
    except TypeError:
        return False
    return isinstance(found, Tensor) and torch.equal(found, y)


def _tunable(block: nn.Module) -> dict[nn.Parameter, None]:
    """What may change: neither weights that are rounded nor those that stay dense."""
    found: dict[nn.Parameter, None] = {}
    for module in block.modules():
        if isinstance(module, ShiftLayer):
            found.update(dict.fromkeys([module.bias] if isinstance(module.bias, nn.Parameter) else []))
        elif isinstance(module, BinaryLinearAttention):
            found.update(dict.fromkeys(module.parameters()))
        elif "Norm" in type(module).__name__:
            found.update(dict.fromkeys(module.parameters(recurse=False)))
    return found


def _error(block: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    gap = sum(float((block(x) - y).double().square().sum()) for x, y in zip(inputs, targets, strict=True))
    power = sum(float(y.double().square().sum()) for y in targets)
    return float((gap / power) ** 0.5) if power > 0 else 0.0
