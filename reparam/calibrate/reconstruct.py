"""One shift layer's weights from its moments: least squares to the dense output, rounding with error feedback, descent.

Three candidates for each output channel: plain rounding; rounding of the dense weights with feedback; and that of the
weights that fit the dense output best on the inputs which the converted layers before this one give. The one with the
smallest output error on the calibration images is kept, so no channel is worse than plain rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.calibrate.moments import Moments, ShiftProduct, by_group
from reparam.calibrate.obq import Inverse, descend, factored_inverse, feed_back
from reparam.ops.shift_fit import least_squares_offset, nearest_sum
from reparam.ops.shift_weight import channel_offset, shift_weight

#: Passes of the descent over a layer's weights.
_SWEEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """A layer's new weights and how well they do, on the calibration images.

    weight and offset are shaped as the layer's, bias (O,) or None. Errors are |y - y'| / |y| of the whole layer:
    `error` of these weights, `rounded_error` of plain rounding with the best bias. `damping` is what the Hessian
    needed, `dead` counts inputs that were always 0.
    """

    weight: Tensor
    offset: Tensor
    bias: Tensor | None
    error: float
    rounded_error: float
    damping: float
    dead: int


def reconstruct(layer: ShiftProduct, dense_weight: Tensor, moments: Moments) -> Reconstruction:
    """Finds weights of the layer's grid whose output follows the dense layer's.

    Args:
        layer: says the grid: bits, terms, zero code, offsets, what is pruned.
        dense_weight: (O, ...) of the dense layer.
        moments: of the converted layer's inputs and the dense layer's outputs.
    """
    dense = by_group(layer, dense_weight.detach().double().cpu())
    inverse = factored_inverse(moments.hessian)
    best, offset = _rounded(layer, dense_weight)
    rounded = least = moments.error(best)
    # The damping pulls towards the dense weights, in the descent as in the least squares.
    cross = moments.cross.mT + dense @ (inverse.damped - moments.hessian)
    fitted = (cross @ inverse.factor.mT) @ inverse.factor
    for weight, chosen in _candidates(layer, dense, fitted, cross, inverse):
        error = moments.error(weight)
        is_better = (error < least).unsqueeze(2)
        best, offset = torch.where(is_better, weight, best), torch.where(is_better, chosen, offset)
        least = torch.minimum(error, least)
    shape = dense_weight.shape
    bias = None if layer.bias is None else (moments.output_mean - _times(best, moments.input_mean)).flatten()
    return Reconstruction(
        weight=best.reshape(shape),
        offset=offset.reshape(layer.offset.shape).to(torch.int8),
        bias=bias,
        error=_relative(least, moments),
        rounded_error=_relative(rounded, moments),
        damping=inverse.damping,
        dead=int((moments.hessian.diagonal(dim1=-2, dim2=-1) <= 0).sum()),
    )


@torch.no_grad()
def put_(layer: ShiftProduct, found: Reconstruction) -> None:
    """Gives a layer its new weights: values of its grid, which it rounds to themselves."""
    layer.set_weight_(found.weight, found.offset)
    if found.bias is not None:
        assert isinstance(layer.bias, nn.Parameter)
        layer.bias.copy_(found.bias)


def _rounded(layer: ShiftProduct, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Plain rounding as the layer would start without calibration; values and offsets by group."""
    options, wide = layer.options, weight.detach().float().cpu()
    offset = channel_offset(wide, domain=options.domain) if options.per_channel_offset else layer.offset.cpu()
    values = shift_weight(wide, offset, options)
    kept = 1.0 if layer.kept is None else layer.kept.cpu()
    return by_group(layer, values * kept).double(), by_group(layer, offset)


def _candidates(
    layer: ShiftProduct, dense: Tensor, fitted: Tensor, cross: Tensor, inverse: Inverse
) -> list[tuple[Tensor, Tensor]]:
    """Values and offsets from both weights (G, R, n), whose rows are taken together, for they do not meet."""
    options, targets, rows = layer.options, torch.cat([dense, fitted], dim=1), dense.shape[1]
    if options.per_channel_offset:
        offset = least_squares_offset(targets.flatten(0, 1).float(), options).view(*targets.shape[:2], 1)
    else:
        offset = by_group(layer, layer.offset.cpu()).repeat(1, 2, 1)
    kept = None if layer.kept is None else by_group(layer, layer.kept.cpu()).repeat(1, 2, 1)
    exponents = offset.flatten().unsqueeze(1)

    def quantise(column: Tensor, index: int) -> Tensor:
        found = nearest_sum(column.flatten().unsqueeze(1), exponents, options).view_as(column)
        return found if kept is None else found * kept[:, :, index]

    # Single precision is enough to choose by, and twice as fast; what is chosen is compared in double.
    values = feed_back(targets.float(), inverse.factor.float(), quantise)
    values = descend(values, inverse.damped.float(), cross.float().repeat(1, 2, 1), quantise, sweeps=_SWEEPS)
    return list(zip(values.double().split(rows, dim=1), offset.split(rows, dim=1), strict=True))


def _times(weight: Tensor, x: Tensor) -> Tensor:
    return (weight @ x.unsqueeze(2)).squeeze(2)


def _relative(error: Tensor, moments: Moments) -> float:
    total = float(moments.power.sum())
    return (float(error.sum()) / total) ** 0.5 if total > 0 else 0.0
