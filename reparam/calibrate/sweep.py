"""Calibrates a converted model layer by layer, each on what the layers that are finished give it.

Held at a time: the images, the outputs of one block of both models, and the moments of one layer.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from reparam.calibrate.activation import fit_range_
from reparam.calibrate.attention import Parts, fit_attention_
from reparam.calibrate.journal import Entry, Journal
from reparam.calibrate.moments import MomentSums, ShiftProduct
from reparam.calibrate.order import Calibrated, find_order
from reparam.calibrate.prefix import Prefix
from reparam.calibrate.reconstruct import put_, reconstruct
from reparam.calibrate.records import Calibration, CalibrationStep, LayerFit
from reparam.calibrate.tune import gives, tune_block_
from reparam.errors import DataError, first_line
from reparam.modes import evaluating
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
    tune_steps: int = 0,
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
        tune_steps: for each block, once its layers are fitted; see `tune_block_`.
        chosen: by path, which of these layers; the others stay as they are.
        progress: told after each layer, and each tuned block.
        journal: where finished layers are kept, and taken from.
    Raises:
        DataError: too few images, images that the model does not take, or numbers on the way that are not finite.
    """
    if len(images) < FEWEST_IMAGES:
        raise DataError(f"calibration: wanted at least {FEWEST_IMAGES} images, got {len(images)}; 128 is a good number")
    with evaluating(model, dense):
        return _sweep(model, dense, images, tune_steps, chosen, progress, journal)


def _sweep(
    model: nn.Module,
    dense: nn.Module,
    images: Tensor,
    tune_steps: int,
    chosen: Callable[[str], bool],
    progress: Callable[[CalibrationStep], None],
    journal: Journal | None,
) -> Calibration:
    batches = images.split(_BATCH)
    try:
        order = find_order(model, dense, batches[0], chosen=chosen)
    except Exception as error:  # whatever a forward raises for images that it does not take
        raise DataError(
            f"calibration: the model does not run on images {tuple(images.shape)} of {images.dtype}: "
            f"{first_line(error)}"
        ) from error
    converted, original = Prefix(model, batches), Prefix(dense, batches)
    blocks = {target.block for target in order.targets} - {None} if tune_steps else set()
    total = len(order.targets) + len(blocks)
    layers: list[LayerFit] = []
    tuned: list[LayerFit] = []
    untuned: list[str] = []

    def tell(fit: LayerFit) -> None:
        progress(CalibrationStep(fit=fit, number=len(layers) + len(tuned) + len(untuned), layers=total))

    for target, following in itertools.zip_longest(order.targets, order.targets[1:]):
        layers.append(_layer_fit(target.path, converted, original, journal))
        tell(layers[-1])
        if target.block is None or (following is not None and following.block == target.block):
            continue
        if tune_steps:
            fit = _block_fit(target.block, converted, original, journal, steps=tune_steps)
            if fit is None:
                untuned.append(target.block)
            else:
                tuned.append(fit)
                tell(fit)
        if following is not None:
            for run in (converted, original):
                run.finish(target.block, following.path)
    return Calibration(
        images=len(images),
        layers=tuple(layers),
        blocks=tuple(tuned),
        untuned=tuple(untuned),
        uncalibrated=order.left_out,
    )


def _block_fit(path: str, converted: Prefix, dense: Prefix, journal: Journal | None, *, steps: int) -> LayerFit | None:
    """Tunes a block and tells its errors before and after; None where it cannot be run alone."""
    block = converted.model.get_submodule(path)
    entry = None if journal is None else journal.read(f"{path} tuned")
    if entry is not None:
        block.load_state_dict(entry.state)
        return entry.fit
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    for (given, own), (_, y) in zip(converted.at(path), dense.at(path), strict=True):
        if len(given) != 1 or (not inputs and not gives(block, given[0], own)):
            return None
        inputs.append(given[0])
        targets.append(y)
    found = tune_block_(block, inputs, targets, steps=steps)
    fit = LayerFit(path=path, error=found.error, rounded_error=found.before)
    if journal is not None:
        journal.write(f"{path} tuned", Entry(fit, block.state_dict()))
    return fit


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
