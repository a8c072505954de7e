"""Calibration as `convert` carries it out: the images, the sweep over the layers, and what is left behind."""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam.api.subject import Subject
from reparam.atomic import write_text
from reparam.calibrate.journal import Journal, digest
from reparam.calibrate.norm_statistics import correct_biases_
from reparam.calibrate.obq import DAMPING
from reparam.calibrate.records import Calibration, CalibrationStep
from reparam.calibrate.sweep import FEWEST_IMAGES, calibrate_
from reparam.errors import DataError, ModelError, OptionError
from reparam.graph.observe import observe_attention_
from reparam.graph.records import Plan, Step
from reparam.models.weights import WeightsRecord
from reparam.recipe.data_settings import DataSettings
from reparam.reporting.calibration import draw_calibration
from reparam.reporting.figure import NO_MATPLOTLIB, can_draw
from reparam.trace.probe import ExampleInput
from reparam.train.data import image_format, sample_images

CALIBRATION_NAME = "calibration.json"
#: How many are taken where nobody says.
CALIBRATION_IMAGES = 128

logger = logging.getLogger(__name__)


def images_for(
    planned: Plan, calibration: Tensor | DataSettings | None, subject: Subject, *, count: int | None
) -> Tensor | None:
    """The calibration images (N, C, H, W) that a plan needs, or None; of a data set `count`, or 128.

    Raises:
        OptionError: the plan calibrates layers and there are no images, there are images and nothing to calibrate, they
            are of another kind, or a count is given and there is nothing to count.
        DataError: too few images, or unreadable ones.
    """
    wanted = [step.site.path for step in calibrated_steps(planned.steps)]
    if wanted and calibration is None:
        raise OptionError(
            f'"{wanted[0]}" is to start from images (init = "calibrated") and there are none; name a folder of '
            "pictures with reparam convert --calibration-dir DIR (calibration= in Python), or take the recipe "
            '"shift-ptq", which needs none'
        )
    if calibration is None and count is not None:
        raise OptionError(
            f"calibration_images {count}: no data set is named to take them from; name one (--calibration-dir DIR), or "
            "leave the number out"
        )
    if calibration is None:
        return None
    if not wanted:
        raise OptionError(
            f'recipe "{planned.recipe.name}" calibrates nothing here; leave the calibration images out, or take the '
            'recipe "shift-ptq-calibrated" (init = "calibrated" in the options of a rule)'
        )
    if isinstance(calibration, Tensor):
        if count is not None:
            raise OptionError(f"calibration_images {count}: the images are given, and all {len(calibration)} are taken")
        return calibration
    if not isinstance(calibration, DataSettings):
        raise OptionError(
            f"calibration: wanted images (N, C, H, W) or reparam.DataSettings(data_dir=...), got a "
            f"{type(calibration).__name__}"
        )
    if count is not None and count < FEWEST_IMAGES:
        raise OptionError(f"calibration_images {count}: wanted at least {FEWEST_IMAGES}")
    return _read(calibration, subject, count=CALIBRATION_IMAGES if count is None else count)


def calibrated_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that start from images."""
    return tuple(step for step in steps if _is_calibrated(step.options))


def follows_dense(steps: Sequence[Step]) -> bool:
    """Whether any of these steps looks at the dense model once it is converted."""
    return any(_is_calibrated(step.options) or step.options.get("bias_correction") for step in steps)


def followed(dense: nn.Module, steps: Sequence[Step], example_input: ExampleInput) -> nn.Module:
    """A copy of the dense model that shows what the steps' operators are to follow."""
    return observe_attention_(copy.deepcopy(dense), calibrated_steps(steps), example_input)


def calibrated_(
    model: nn.Module,
    dense: nn.Module,
    images: Tensor,
    *,
    steps: Sequence[Step],
    tune_steps: int = 0,
    progress: Callable[[CalibrationStep], None] = lambda step: None,
    journal: Journal | None = None,
) -> Calibration:
    """Calibrates what these steps put in as `calibrate_` does, and says what a user should know of it."""
    owners = {step.site.path for step in steps if step.site.kind == "attention"}
    layers = {step.site.path for step in steps if step.site.kind != "attention"}

    def is_theirs(path: str) -> bool:
        return path in layers or path.rpartition(".")[0] in owners

    found = calibrate_(
        model, dense, images, tune_steps=tune_steps, chosen=is_theirs, progress=progress, journal=journal
    )
    for left in found.uncalibrated:
        logger.warning("%s was not calibrated and keeps its rounded weights: %s", left.path, left.reason)
    singular = [fit for fit in found.layers if fit.damping > DAMPING]
    if singular:
        logger.warning(
            "inputs of %d layers depend on each other, so their Hessian was damped more (%s: %.3g of its "
            "diagonal); more images may help",
            len(singular),
            singular[0].path,
            singular[0].damping,
        )
    dead = [fit for fit in found.layers if fit.dead_inputs]
    if dead:
        logger.info(
            "inputs that were 0 for every image, whose weights are rounded as they are: %s",
            ", ".join(f"{fit.dead_inputs} of {fit.path}" for fit in dead),
        )
    return found


def corrected_(model: nn.Module, dense: nn.Module, example_input: ExampleInput, *, steps: Sequence[Step]) -> None:
    """Corrects the biases that these steps ask for, as `correct_biases_` does, and says how far that went."""
    wanted = [step for step in steps if step.options.get("bias_correction")]
    if not wanted:
        return
    paths = {step.site.path for step in wanted}
    done = correct_biases_(model, dense, example_input, chosen=paths.__contains__)
    logger.info("biases corrected from batch norms: %d of %d layers", len(done), len(wanted))


def journal_for(
    out: Path, planned: Plan, record: WeightsRecord, images: Tensor | None, *, tune_steps: int
) -> Journal | None:
    """Where the layers of a calibration are kept until its run is written: a hidden folder beside it."""
    if images is None:
        return None
    folder = out.resolve().parent / f".{out.name}.calibration"
    return Journal(folder, digest([planned.model_dump_json(), record.sha256, str(tune_steps)], [images]))


def write_calibration(folder: Path, found: Calibration) -> None:
    """Writes `calibration.json` into a run, the errors of every layer, and a picture of them beside it."""
    target = folder / CALIBRATION_NAME
    write_text(target, found.model_dump_json(indent=2) + "\n")
    if not can_draw():
        logger.info(NO_MATPLOTLIB)
    elif found.layers:
        draw_calibration(found, target.with_suffix(""))


def _is_calibrated(options: dict[str, Any]) -> bool:
    inner = options.get("shift")
    return options.get("init") == "calibrated" or (isinstance(inner, dict) and _is_calibrated(inner))


def _read(data: DataSettings, subject: Subject, *, count: int) -> Tensor:
    spec = subject.spec
    if spec.input_size is None:
        raise ModelError(f"nothing says which images {spec.name} takes; give their size with --img-size")
    image = image_format(data, input_size=spec.input_size, model=spec.data)
    images, where = sample_images(data, image=image, count=count, device=torch.device("cpu"))
    if len(images) < min(count, FEWEST_IMAGES):
        raise DataError(f"{where}: wanted at least {FEWEST_IMAGES} images to calibrate on, found {len(images)}")
    if len(images) < count:
        logger.info("%s holds %d images, fewer than the %d asked for; all are used", where, len(images), count)
    return images
