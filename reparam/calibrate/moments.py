"""What a layer's reconstruction needs of its images, summed batch by batch: second moments, not the images.

With inputs x (T, n) of the converted layer and outputs y (T, R) of the dense one, the squared error of weights Q is

    sum |y - Q x - b|^2 = |y|^2 - 2 tr(Q C) + tr(Q H Q'),   H = X'X (n, n),  C = X'Y (n, R),

all centred where the layer has a bias, which then takes the mean: b = mean(y) - Q mean(x). A convolution's x are its
patches; its groups G are layers of their own, an axis in front.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d

ShiftProduct = ShiftLinear | ShiftConv2d


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Centred where there is a bias: hessian (G, n, n), cross (G, n, R), power (G, R), and the means taken off.

    input_mean (G, n) and output_mean (G, R) are 0 without a bias. float64.
    """

    hessian: Tensor
    cross: Tensor
    power: Tensor
    input_mean: Tensor
    output_mean: Tensor

    def error(self, weight: Tensor) -> Tensor:
        """The summed squared error (G, R) of weights (G, R, n), at their best bias."""
        wide = weight.double()
        fitted = (wide * self.cross.mT).sum(-1)
        return (self.power - 2 * fitted + ((wide @ self.hessian) * wide).sum(-1)).clamp_min(0.0)


class MomentSums:
    """Running sums for one layer: what it is given, and what the dense layer made of the same images."""

    def __init__(self, layer: ShiftProduct) -> None:
        self._layer, self._rows = layer, 0
        groups, outputs, inputs = by_group(layer, layer.weight.detach()).shape
        self._hessian = torch.zeros(groups, inputs, inputs, dtype=torch.float64)
        self._cross = torch.zeros(groups, inputs, outputs, dtype=torch.float64)
        self._power = torch.zeros(groups, outputs, dtype=torch.float64)
        self._inputs = torch.zeros(groups, inputs, dtype=torch.float64)
        self._outputs = torch.zeros(groups, outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds a batch: x as the layer takes it, before its activation grid, and the dense output y."""
        rows, targets = input_rows(self._layer, x), output_rows(self._layer, y)
        self._rows += rows.shape[1]
        self._hessian += (rows.mT @ rows).double().cpu()
        self._cross += (rows.mT @ targets).double().cpu()
        self._power += targets.double().square().sum(1).cpu()
        self._inputs += rows.double().sum(1).cpu()
        self._outputs += targets.double().sum(1).cpu()

    def moments(self) -> Moments:
        """The moments of everything added so far."""
        has_bias, rows = self._layer.bias is not None, max(self._rows, 1)
        x, y = (total / rows * has_bias for total in (self._inputs, self._outputs))
        return Moments(
            hessian=self._hessian - rows * x.unsqueeze(2) * x.unsqueeze(1),
            cross=self._cross - rows * x.unsqueeze(2) * y.unsqueeze(1),
            power=self._power - rows * y.square(),
            input_mean=x,
            output_mean=y,
        )


def by_group(layer: ShiftProduct, weight: Tensor) -> Tensor:
    """A layer's weights (O, ...) as (G, O / G, n); a linear layer is one group."""
    groups = layer.form.groups if isinstance(layer, ShiftConv2d) else 1
    parted: Tensor = weight.flatten(1).unflatten(0, (groups, -1))
    return parted


def input_rows(layer: ShiftProduct, x: Tensor) -> Tensor:
    """What the layer multiplies: (G, T, n) float32, activations rounded as the layer rounds them."""
    wide: Tensor = layer.activation(x).float()
    if isinstance(layer, ShiftConv2d):
        return layer.form.rows(layer.form.prepared(wide))
    return wide.reshape(1, -1, layer.in_features)


def output_rows(layer: ShiftProduct, y: Tensor) -> Tensor:
    """The outputs (G, T, R) float32 that belong to `input_rows`."""
    if isinstance(layer, ShiftConv2d):
        parted: Tensor = y.float().flatten(2).unflatten(1, (layer.form.groups, -1))
        return parted.permute(1, 0, 3, 2).flatten(1, 2)
    return y.float().reshape(1, -1, layer.out_features)
