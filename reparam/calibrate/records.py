"""What a calibration found, layer by layer, and how it is told while it goes on."""

from dataclasses import dataclass

from reparam.recipe.schema import Frozen


class LayerFit(Frozen):
    """One layer after calibration; measured on the calibration images, against the dense model's output.

    `error` is |y - y'| / |y| of the layer with everything before it converted, `rounded_error` that of plain rounding
    in its place with the best bias, or of an attention as it starts. Of shift layers, `damping` is the share of the
    Hessian's mean diagonal that was added, and `dead_inputs` counts inputs that were 0 for every image.
    """

    path: str
    error: float
    rounded_error: float
    damping: float = 0.0
    dead_inputs: int = 0


class Uncalibrated(Frozen):
    """A layer that was to be calibrated and was not: it keeps its rounded weights."""

    path: str
    reason: str


class Calibration(Frozen):
    """A finished calibration on `images` images.

    `blocks` are those that were tuned: the error of a block's output, and what it was before in `rounded_error`.
    `untuned` are those that take more than one tensor.
    """

    images: int
    layers: tuple[LayerFit, ...]
    blocks: tuple[LayerFit, ...] = ()
    untuned: tuple[str, ...] = ()
    uncalibrated: tuple[Uncalibrated, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationStep:
    """Told after each layer and each tuned block: its fit, its number from 1, and how many there are."""

    fit: LayerFit
    number: int
    layers: int
