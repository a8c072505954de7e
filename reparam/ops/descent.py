"""A short descent: Adam with rates that fall along a cosine, which changes nothing but the parameters it is given."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

#: Parameters, and the rate at which they begin.
Rate = tuple[Sequence[nn.Parameter], float]


def descend_(rates: Sequence[Rate], loss: Callable[[int], Tensor], *, steps: int) -> None:
    """Takes steps that lower a loss; no gradient is left on these parameters, and none is put on any other.

    Args:
        rates: what may change. A parameter that a loss does not depend on stays as it is.
        loss: of a step, from 0.
        steps: how many.
    """
    optimiser = torch.optim.Adam([{"params": list(parameters), "lr": lr} for parameters, lr in rates])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    parameters = [parameter for group, _ in rates for parameter in group]
    for step in range(steps):
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(step), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        schedule.step()
    for parameter in parameters:
        parameter.grad = None
