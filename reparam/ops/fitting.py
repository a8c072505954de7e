"""Fitting a layer to the output of the dense layer that it replaces, up to a scale and a shift of each channel.

A normalisation behind the layer removes scales and shifts, so what counts is each output channel's correlation with the
dense one over all images and places. Steps of Adam raise it, with the operator's own gradients.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reparam.ops.descent import descend_

#: Images of one step, so that the steps' time does not grow with the number of images.
_BATCH = 64


def correlation(one: Tensor, other: Tensor, *, channel: int) -> Tensor:
    """Returns Pearson's correlation of each channel over all other axes (O,); a constant channel has 0."""
    first, second = (t.movedim(channel, 0).flatten(1).float() for t in (one, other))
    first, second = (t - t.mean(1, keepdim=True) for t in (first, second))
    sizes = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    found: Tensor = (first * second).sum(1) / sizes.clamp_min(torch.finfo(torch.float32).tiny)
    return found


def fit_(
    run: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    x: Tensor,
    target: Tensor,
    *,
    steps: int,
    lr: float,
    channel: int,
) -> None:
    """Changes `parameters` so that `run(x)` correlates with `target`, channel by channel.

    Args:
        run: the layer, without the normalisation behind it.
        parameters: of the layer.
        x: inputs (B, ...).
        target: outputs of the dense layer (B, ...).
        steps: of Adam; the rate falls along a cosine.
        lr: first rate.
        channel: axis of the output channels.
    """

    def loss(step: int) -> Tensor:
        rows = torch.randperm(len(x), device=x.device)[:_BATCH]
        return 1 - correlation(run(x[rows]), target[rows], channel=channel).mean()

    descend_([(parameters, lr)], loss, steps=steps)
