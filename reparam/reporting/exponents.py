"""Where the weights of shift layers lie: how often each power of two occurs in each layer."""

import torch
from torch import nn

from reparam.ops.power_of_two import exponent_of
from reparam.ops.shift_layer import ShiftLayer
from reparam.recipe.schema import Frozen


class ExponentHistogram(Frozen):
    """The weights of one shift layer, ±2**p or 0: `counts[i]` have p = `lowest` + i, `zeros` are 0.

    A layer whose weights are all 0 has no counts.
    """

    path: str
    bits: int
    lowest: int
    counts: tuple[int, ...]
    zeros: int

    @property
    def weights(self) -> int:
        """All weights of the layer."""
        return sum(self.counts) + self.zeros


def exponent_histograms(model: nn.Module) -> tuple[ExponentHistogram, ...]:
    """Returns one histogram for each shift layer, in the order of the model's modules."""
    return tuple(_histogram(path, m) for path, m in model.named_modules() if isinstance(m, ShiftLayer))


def _histogram(path: str, layer: ShiftLayer) -> ExponentHistogram:
    with torch.no_grad():
        weight = layer.weight.float().flatten()
    exponents = exponent_of(weight[weight != 0])
    lowest = int(exponents.min()) if len(exponents) else 0
    return ExponentHistogram(
        path=path,
        bits=layer.options.bits,
        lowest=lowest,
        counts=tuple(torch.bincount(exponents - lowest).tolist()),
        zeros=len(weight) - len(exponents),
    )
