"""Adder layers in operations that every engine has, without a tensor of all differences.

    Y[o, p] = -sum over taps t and channels i of |W[o, i, t] - X[i, p + t]|

One tap of the kernel is a strided slice of the padded image. As many output channels are computed together as keep the
differences of one image under a bound. Sums are rounded in another order than by the operator.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.kernels.geometry import Pair
from reparam.lowering.base import LoweredModule
from reparam.ops.adder_conv2d import AdderConv2d
from reparam.ops.adder_layer import AdderLayer
from reparam.ops.adder_linear import AdderLinear

#: Differences of one image that are held together: 4 MB.
_TOGETHER = 1 << 20


class AdderTaps(LoweredModule):
    """An adder layer in parts. Shapes as the layer's own; `rows` (G, O / G, K) are the weights of each group."""

    rows: Tensor

    def __init__(self, layer: AdderLayer, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.detach().contiguous())
        self.bias, self.norm = layer.bias, layer.norm

    def distances(self, inputs: Tensor, counts: Tensor | None = None) -> Tensor:
        """Returns the sums (B, G, O / G, P) for inputs (B, G, K, P), each difference times its count (1, 1, K, P)."""
        together = max(1, _TOGETHER // inputs.shape[1:].numel())
        found = []
        for first in range(0, self.rows.shape[1], together):
            differences = (self.rows[:, first : first + together, :, None] - inputs.unsqueeze(2)).abs()
            found.append((differences if counts is None else differences * counts.unsqueeze(2)).sum(3))
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)


class AdderConv2dTaps(AdderTaps):
    """Of an `adder_conv2d`."""

    def __init__(self, layer: AdderConv2d) -> None:
        by_tap = layer.weight.unflatten(0, (layer.form.groups, -1)).movedim(2, -1)  # (G, O / G, KH, KW, I / G)
        super().__init__(layer, by_tap.flatten(2))
        self.form, self.mask = layer.form, layer.options.mask

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, OH, OW)."""
        size = self.form.output((1, *x.shape[1:]))
        x = self.form.prepared(x)
        counts = self._taps(torch.ones_like(x[:1]), size)[:, :1] if self.mask else None
        y = -self.distances(self._taps(x, size), counts).flatten(1, 2).unflatten(2, size)
        normalised: Tensor = self.norm(y if self.bias is None else y + self.bias.view(-1, 1, 1))
        return normalised

    def _taps(self, x: Tensor, size: Pair) -> Tensor:
        """What the weights of each group meet at each output: (B, G, KH * KW * I / G, OH * OW)."""
        form = self.form
        padded = F.pad(x, (form.padding[1], form.padding[1], form.padding[0], form.padding[0]))
        rows = [padded[:, :, self._span(tap, 0, size)] for tap in range(form.kernel[0])]
        taps = [row[..., self._span(tap, 1, size)] for row in rows for tap in range(form.kernel[1])]
        by_group: Tensor = torch.cat(taps, dim=1).flatten(2).unflatten(1, (len(taps), form.groups, -1))
        return by_group.transpose(1, 2).flatten(2, 3)

    def _span(self, tap: int, axis: int, size: Pair) -> slice:
        """The rows (axis 0) or columns of the padded image that one row or column of the kernel meets."""
        first, stride = tap * self.form.dilation[axis], self.form.stride[axis]
        return slice(first, first + stride * (size[axis] - 1) + 1, stride)


class AdderLinearTaps(AdderTaps):
    """Of an `adder_linear`."""

    def __init__(self, layer: AdderLinear) -> None:
        super().__init__(layer, layer.weight[None])

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O)."""
        inputs = x.reshape(len(x), 1, -1, x.shape[-1]).transpose(2, 3)  # (B, 1, I, rows)
        y = -self.distances(inputs).squeeze(1).transpose(1, 2).reshape(*x.shape[:-1], -1)
        y = y if self.bias is None else y + self.bias
        normalised: Tensor = self.norm(y.reshape(-1, y.shape[-1])).view(y.shape)
        return normalised


def adder_taps(module: nn.Module) -> AdderTaps | None:
    """The form of an adder layer; None for any other module."""
    if isinstance(module, AdderConv2d):
        return AdderConv2dTaps(module)
    return AdderLinearTaps(module) if isinstance(module, AdderLinear) else None
