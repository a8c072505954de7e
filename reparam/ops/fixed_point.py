"""Fixed-point activations: x becomes n * 2**-f with n an 8- or 16-bit integer and one f for the whole tensor.

f is the largest one whose range covers the observed maximum: f = floor(log2(n_max / absmax)).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reparam.modes import evaluating
from reparam.ops.power_of_two import exponent_of, power_of_two
from reparam.ops.ste import round_to_grid, straight_through

#: Range assumed until a calibration or the first training batch: a layer-normalised activation rarely leaves it.
INITIAL_ABSMAX = 8.0
_DECAY = 0.99


class FixedPoint(nn.Module):
    """Rounds activations to a fixed-point grid; the range is observed while training and frozen in eval.

    Args:
        bits: 8 or 16, sign included.
        rounding: "nearest" (ties to even) or "floor" (as DeepShift released it; no gradient is stopped).
    """

    absmax: Tensor

    def __init__(self, bits: Literal[8, 16], *, rounding: Literal["nearest", "floor"] = "nearest") -> None:
        super().__init__()
        self.bits, self.rounding = bits, rounding
        self.largest = 2 ** (bits - 1) - 1
        self.register_buffer("absmax", torch.tensor(INITIAL_ABSMAX))

    def step(self) -> Tensor:
        """Returns the grid's step 2**-f, a float32 scalar."""
        return grid_step(self.absmax, self.largest)

    def forward(self, x: Tensor) -> Tensor:
        """Rounds `x` (any shape); computed in float32 even under autocast, because 16-bit grids overflow float16."""
        if self.training:
            self._observe(x)
        step, wide = self.step(), x.float()
        if self.rounding == "floor":
            grid = torch.floor(wide / step).clamp(-self.largest - 1, self.largest) * step
            return straight_through(wide, grid).to(x.dtype)
        return round_to_grid(wide, step, largest=self.largest).to(x.dtype)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        if not x.numel():
            return  # an expert may get no token
        low, high = torch.aminmax(x.detach())
        self.absmax.copy_(torch.maximum(self.absmax * _DECAY, torch.maximum(-low, high).float()))

    def extra_repr(self) -> str:
        """Width and rounding, for `repr`."""
        return f"bits={self.bits}, rounding={self.rounding}"


def grid_step(absmax: Tensor, largest: int) -> Tensor:
    """Returns the smallest power of two of which `largest` steps reach `absmax`; float32 scalars."""
    needed = absmax.float().clamp_min(2.0**-100) / largest
    exponent = exponent_of(needed)
    return power_of_two(exponent + (power_of_two(exponent) < needed))


@torch.no_grad()
def calibrate_fixed_point_(model: nn.Module, inputs: Sequence[Any]) -> None:
    """Sets the range of every `FixedPoint` in `model` to what it meets in one eval-mode run on real `inputs`.

    One that meets nothing, such as in an expert without tokens, keeps its range.
    """
    grids = [module for module in model.modules() if isinstance(module, FixedPoint)]
    if not grids:
        return
    device = grids[0].absmax.device
    before = [grid.absmax.clone() for grid in grids]
    try:
        with evaluating(model):
            for grid in grids:
                grid.absmax.zero_()
                grid.training = True
            model(*(x.to(device) if isinstance(x, Tensor) else x for x in inputs))
    finally:
        for grid, absmax in zip(grids, before, strict=True):
            if not grid.absmax:
                grid.absmax.copy_(absmax)
