"""`reparam.convert`: plan, rewrite, verify, and save when asked to."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reparam.api.calibrate import (
    calibrated_,
    corrected_,
    followed,
    follows_dense,
    images_for,
    journal_for,
    write_calibration,
)
from reparam.api.recipes import check_recipe
from reparam.api.subject import Subject, count_totals, resolve_subject
from reparam.atomic import atomic_folder, refuse_foreign
from reparam.calibrate.journal import Journal
from reparam.calibrate.records import Calibration, CalibrationStep
from reparam.checkpoint.save import write_checkpoint
from reparam.errors import CheckpointError, OptionError
from reparam.graph.plan import make_plan
from reparam.graph.provenance import Provenance, attach
from reparam.graph.records import Plan
from reparam.graph.rewrite import rewrite
from reparam.models.inputs import input_specs
from reparam.models.spec import stamp
from reparam.models.weights import WeightsRecord, given_weights, load_weights
from reparam.ops.fixed_point import calibrate_fixed_point_
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.schema import Recipe
from reparam.trace.probe import ExampleInput, as_arguments
from reparam.train.summary import SUMMARY_NAME

#: The folder inside a run that holds the original model: the teacher, and where every stage begins.
DENSE = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A converted model, the plan that was carried out, and what a calibration found where there was one."""

    model: nn.Module
    plan: Plan
    calibration: Calibration | None = None


def convert(
    model: str | nn.Module,
    recipe: str | Path | Recipe,
    *,
    example_input: ExampleInput | None = None,
    weights: str = "hub",
    stages: int | None = None,
    allow_partial: bool = False,
    overrides: Sequence[str] = (),
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    calibration: Tensor | DataSettings | None = None,
    calibration_images: int | None = None,
    tune_steps: int = 0,
    progress: Callable[[CalibrationStep], None] = lambda step: None,
    out: str | Path | None = None,
    inplace: bool = False,
) -> Conversion:
    """Converts a model by a recipe and verifies every step.

    Args:
        model: timm name or shorthand, "hf-hub:...", "local-dir:...", "file.py:factory", or any module.
        recipe: shipped name, path of a .toml file, or a Recipe.
        example_input: a tensor the model takes, or a tuple of arguments; wanted for modules that timm does not know.
            Fixed-point activations take their range from it, so real data are best.
        weights: of a named model: "hub", "none", or the path of a .safetensors file.
        stages: how many of the recipe's stages to carry out; all when None.
        allow_partial: keep refused sites as they are instead of raising.
        overrides: changes of the recipe, such as "stage.0.rule.0.conv_kernel=5".
        num_classes: classes of a named model.
        img_size: side of its square images, in pixels.
        in_chans: channels of its images.
        model_kwargs: further arguments of its builder.
        calibration: images (N, C, H, W) as the model takes them, or where they are, for layers with
            `init = "calibrated"`; labels are not looked at.
        calibration_images: how many are taken of a data set, spread over its training split; 128 when None.
        tune_steps: with a calibration, steps in which biases and norms of each block are tuned once its layers are
            fitted.
        progress: told after each calibrated layer, and each tuned block.
        out: folder for the run: the converted model, and the original in its `dense` folder.
        inplace: convert the given module itself instead of a copy; a named model is never copied.
    Raises:
        ModelError, RecipeError, PlanError: as for `plan`.
        WeightsError: weights that cannot be had or do not fit.
        RewriteError: a step did not do what the plan promised; the given module may be changed if `inplace`.
        OptionError: layers are to be calibrated and there are no images, or the other way round; or blocks are to be
            tuned without a calibration.
        DataError: too few images, or unreadable ones.
        CheckpointError: `out` cannot be written.
    """
    if tune_steps < 0:
        raise OptionError(f"tune_steps {tune_steps}: wanted 0 or more")
    checked = check_recipe(recipe, overrides=overrides)
    if out is not None:
        refuse_foreign(Path(out).resolve())
        _refuse_trained(Path(out))
    subject = resolve_subject(
        model,
        example_input=example_input,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        model_kwargs=model_kwargs,
    )
    planned = make_plan(
        subject.model, checked, subject.example_input, count=count_totals, stages=stages, allow_partial=allow_partial
    )
    images = images_for(planned, calibration, subject, count=calibration_images)
    if tune_steps and images is None:
        raise OptionError(
            f'recipe "{planned.recipe.name}" calibrates nothing, and blocks are tuned on calibration images; leave '
            '--tune-steps out, or take the recipe "shift-ptq-calibrated" with --calibration-dir DIR'
        )
    dense, record = _with_weights(subject, weights, copied=not (inplace or isinstance(model, str)))
    stamp(dense, subject.spec)
    if out is None:
        return _converted(dense, subject, planned, record, images, tune_steps, progress)
    journal = journal_for(Path(out), planned, record, images, tune_steps=tune_steps)
    with atomic_folder(out) as draft:
        (draft / DENSE).mkdir()
        write_checkpoint(dense, draft / DENSE, example_input=_golden_input(example_input))
        conversion = _converted(dense, subject, planned, record, images, tune_steps, progress, journal)
        write_checkpoint(conversion.model, draft, example_input=_golden_input(example_input))
        if conversion.calibration is not None:
            write_calibration(draft, conversion.calibration)
    if journal is not None:
        journal.remove()
    return conversion


def _refuse_trained(folder: Path) -> None:
    if (folder / SUMMARY_NAME).exists():
        raise CheckpointError(
            f"{folder} holds a fine-tuned run, which a new conversion would replace; name another folder or remove it. "
            f"To train it further: reparam finetune {folder}"
        )


def _with_weights(subject: Subject, weights: str, *, copied: bool) -> tuple[nn.Module, WeightsRecord]:
    if any(parameter.is_meta for parameter in subject.model.parameters()):
        return subject.model, load_weights(subject.model, subject.spec, weights)
    return copy.deepcopy(subject.model) if copied else subject.model, given_weights(subject.model)


def _converted(
    dense: nn.Module,
    subject: Subject,
    planned: Plan,
    record: WeightsRecord,
    images: Tensor | None,
    tune_steps: int,
    progress: Callable[[CalibrationStep], None],
    journal: Journal | None = None,
) -> Conversion:
    original = followed(dense, planned.steps, subject.example_input) if follows_dense(planned.steps) else None
    model = rewrite(dense, planned, subject.example_input)
    inputs = input_specs(subject.example_input)
    if _has_data(subject.example_input):
        calibrate_fixed_point_(model, as_arguments(subject.example_input))
    found = None
    if original is not None:
        corrected_(model, original, subject.example_input, steps=planned.steps)
    if original is not None and images is not None:
        found = calibrated_(
            model,
            original,
            images,
            steps=planned.steps,
            tune_steps=tune_steps,
            progress=progress,
            journal=journal,
        )
    attach(model, Provenance(spec=subject.spec, plan=planned, weights=record, inputs=inputs))
    return Conversion(model=model, plan=planned, calibration=found)


def _golden_input(example_input: ExampleInput | None) -> ExampleInput | None:
    return example_input if example_input is not None and _has_data(example_input) else None


def _has_data(example_input: ExampleInput) -> bool:
    return not any(isinstance(x, Tensor) and x.is_meta for x in as_arguments(example_input))
