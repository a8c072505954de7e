"""What a model observes while it trains, of the images of all processes: ranges of activations, statistics of norms.

Each process observes its own share and keeps what it saw. A range is a maximum that fades, so the maximum over
processes after each step is that of one process with all images. A running statistic is linear in what was seen, so
its mean over processes is the same whenever it is taken: before an evaluation and before a state is kept, which only
the first process does.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from reparam.ops.fixed_point import FixedPoint
from reparam.processes import broadcast_from_main_, max_over_processes_, process_count, sum_over_processes_

_BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def share_ranges_(model: nn.Module) -> None:
    """Gives every fixed-point range its maximum over processes; nothing to do for one process."""
    if process_count() == 1:
        return
    ranges = [module.absmax for module in model.modules() if isinstance(module, FixedPoint)]
    if ranges:
        for own, every in zip(ranges, max_over_processes_(torch.stack(ranges)), strict=True):
            own.copy_(every)


@torch.no_grad()
def share_observed_(model: nn.Module) -> None:
    """Gives every process the same buffers: mean statistics of batch norms, largest ranges, others from the first.

    Nothing to do for one process.
    """
    if process_count() == 1:
        return
    share_ranges_(model)
    statistics = list(_statistics(model))
    for statistic in statistics:
        sum_over_processes_(statistic).div_(process_count())
    shared = {id(statistic) for statistic in statistics}
    broadcast_from_main_(buffer for buffer in model.buffers() if id(buffer) not in shared)


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            yield from (own for own in (module.running_mean, module.running_var) if own is not None)
