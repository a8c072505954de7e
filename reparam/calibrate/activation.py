"""The step of fixed-point activations by squared error: clipping a few outliers may cost less than a coarser grid."""

from collections.abc import Iterable

import torch
from torch import Tensor

from reparam.ops.fixed_point import FixedPoint
from reparam.ops.power_of_two import exponent_of, power_of_two
from reparam.ops.ste import round_to_grid

#: Exponents that are tried, relative to the step that covers the first batch; later batches may be wider.
_TRIED = range(-4, 3)


@torch.no_grad()
def fit_range_(grid: FixedPoint, batches: Iterable[Tensor]) -> None:
    """Gives the grid the power-of-two step with the smallest squared error over all batches of its inputs.

    A grid that meets only zeros keeps its range.
    """
    steps: Tensor | None = None
    errors = torch.zeros(len(_TRIED), dtype=torch.float64)
    for x in batches:
        wide = x.float()
        if steps is None:
            if not wide.any():
                continue
            covering = exponent_of(wide.abs().max() / grid.largest) + 1
            steps = torch.stack([power_of_two(covering + tried) for tried in _TRIED])
        for i, step in enumerate(steps):
            errors[i] += (round_to_grid(wide, step, largest=grid.largest) - wide).double().square().sum().cpu()
    if steps is not None:
        grid.absmax.copy_(steps[int(errors.argmin())] * grid.largest)
