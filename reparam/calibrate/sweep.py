"""Calibrates a converted model layer by layer, each on what the layers that are finished give it.

Held at a time: the images, the outputs of one block of both models, and the moments of one layer.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from reparam.calibrate.activation import fit_range_
from reparam.calibrate.attention import Parts, fit_attention_
from reparam.calibrate.journal import Entry, Journal
from reparam.calibrate.modes import evaluating
from reparam.calibrate.moments import MomentSums, ShiftProduct
from reparam.calibrate.order import Calibrated, find_order
from reparam.calibrate.prefix import Prefix
from reparam.calibrate.reconstruct import put_, reconstruct
from reparam.calibrate.records import Calibration, CalibrationStep, LayerFit
from reparam.errors import DataError
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.fixed_point import FixedPoint

#: Fewer images say too little about a layer's inputs.
FEWEST_IMAGES = 32
_BATCH = 32


@torch.no_grad()
def calibrate_(
    model: nn.Module,
    dense: nn.Module,
    images: Tensor,
    *,
    chosen: Callable[[str], bool] = lambda path: True,
    progress: Callable[[CalibrationStep], None] = lambda step: None,
    journal: Journal | None = None,
) -> Calibration:
    """Gives every layer with `init = "calibrated"` weights that follow the dense layer's output on the images.

    Args:
        model: converted; both models keep their mode.
        dense: the original, whose layers have the same paths; on the same device. Where an attention is calibrated, a
            module at the path of its core returns the softmax attention's output (B, H, N, E).
        images: (N, C, H, W) as the models take them, no labels.
        chosen: by path, which of these layers; the others stay as they are.
        progress: told after each layer.
        journal: where finished layers are kept, and taken from.
    Raises:
        DataError: too few images, or numbers on the way that are not finite.
    """
    if len(images) < FEWEST_IMAGES:
        raise DataError(f"calibration: wanted at least {FEWEST_IMAGES} images, got {len(images)}; 128 is a good number")
    with evaluating(model, dense):
        return _sweep(model, dense, images, chosen, progress, journal)


def _sweep(
    model: nn.Module,
    dense: nn.Module,
    images: Tensor,
    chosen: Callable[[str], bool],
    progress: Callable[[CalibrationStep], None],
    journal: Journal | None,
) -> Calibration:
    batches = images.split(_BATCH)
    order = find_order(model, dense, batches[0], chosen=chosen)
    runs = Prefix(model, batches), Prefix(dense, batches)
    fits: list[LayerFit] = []
    for number, (path, block) in enumerate(order.targets, start=1):
        fits.append(_layer_fit(path, *runs, journal))
        progress(CalibrationStep(fit=fits[-1], number=number, layers=len(order.targets)))
        if number < len(order.targets) and block is not None and order.targets[number].block != block:
            for run in runs:
                run.finish(block, order.targets[number].path)
    return Calibration(images=len(images), layers=tuple(fits), uncalibrated=order.left_out)


def _layer_fit(path: str, converted: Prefix, dense: Prefix, journal: Journal | None) -> LayerFit:
    layer: Calibrated = converted.model.get_submodule(path)  # type: ignore[assignment]  # as `find_order` found it
    entry = None if journal is None else journal.read(path)
    if entry is not None:
        layer.load_state_dict(entry.state)
        return entry.fit
    fit = _attention_fit if isinstance(layer, BinaryLinearAttention) else _shift_fit
    found = fit(path, layer, converted, dense)  # type: ignore[arg-type]  # each has its own kind
    if journal is not None:
        journal.write(path, Entry(found, layer.state_dict()))
    return found


def _shift_fit(path: str, layer: ShiftProduct, converted: Prefix, dense: Prefix) -> LayerFit:
    if isinstance(layer.activation, FixedPoint):
        fit_range_(layer.activation, (x for (x,), _ in converted.at(path)))
    sums = MomentSums(layer)
    for ((x,), _), (_, y) in zip(converted.at(path), dense.at(path), strict=True):
        sums.add(x, y)
    moments = sums.moments()
    if not all(sum_.isfinite().all() for sum_ in (moments.hessian, moments.cross, moments.power)):
        raise _not_finite(path)
    weight = dense.model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    found = reconstruct(layer, weight, moments)
    put_(layer, found)
    return LayerFit(
        path=path,
        error=found.error,
        rounded_error=found.rounded_error,
        damping=found.damping,
        dead_inputs=found.dead,
    )


def _attention_fit(path: str, core: BinaryLinearAttention, converted: Prefix, dense: Prefix) -> LayerFit:
    def batches() -> Iterator[Parts]:
        for (qkv, _), (_, y) in zip(converted.at(path), dense.at(path), strict=True):
            yield (*qkv, y)

    try:
        found = fit_attention_(core, batches)
    except ArithmeticError:
        raise _not_finite(path) from None
    return LayerFit(path=path, error=found.error, rounded_error=found.start_error)


def _not_finite(path: str) -> DataError:
    return DataError(
        f"calibration: {path} is given or makes numbers that are not finite on these images; look for them in the "
        "weights and the images, or keep the layer dense by a rule"
    )
