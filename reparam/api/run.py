"""A run on disk, opened for training: the original, the plan, the folder of each stage, and how they follow.

RUN/config.json, model.safetensors   the converted model; after fine-tuning the best of the last stage
RUN/dense/                           the original: teacher, and where stage 0 begins
RUN/stage-0-NAME/, stage-1-NAME/     the best model of each stage
RUN/last/                            the newest model of the stage in training
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from reparam.api.convert import DENSE
from reparam.api.differences import first_rule_difference
from reparam.api.evaluate import format_of
from reparam.api.recipes import check_recipe
from reparam.atomic import as_file_name, atomic_folder
from reparam.checkpoint.load import load
from reparam.checkpoint.record import CONFIG_NAME, WEIGHTS_NAME, Record, read_record
from reparam.checkpoint.save import save
from reparam.errors import CheckpointError, OptionError, RecipeError
from reparam.graph.provenance import Provenance, attach
from reparam.graph.records import Plan
from reparam.graph.rewrite import rewrite
from reparam.models.inputs import InputSpec, meta_inputs
from reparam.models.weights import WeightsRecord
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.schema import Recipe
from reparam.train.data import ImageFormat
from reparam.train.loop import Save
from reparam.train.regime import count_outputs

LAST = "last"
Base = nn.Module | Callable[[], nn.Module] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What every stage of a run shares. `plan` carries the recipe as it was asked for; `dense` is on `device`."""

    folder: Path
    record: Record
    plan: Plan
    weights: WeightsRecord
    base: Base
    dense: nn.Module
    image: ImageFormat
    num_classes: int
    device: torch.device

    def stage_folder(self, stage: int) -> Path:
        """Where the best model of a stage is kept."""
        return self.folder / f"stage-{stage}-{as_file_name(self.plan.stages[stage].name)}"

    def stage_model(self, stage: int) -> nn.Module:
        """Converts the best model of the stage before, or the original, by the stage's plan; on `device`.

        Raises:
            CheckpointError: the stage before was not trained.
        """
        before = self.stage_folder(stage - 1) if stage else self.folder / DENSE
        if not before.is_dir():
            raise CheckpointError(
                f"{before}: no such folder; stage {stage} begins where stage {stage - 1} ended, train that first"
            )
        model = load(before, base=self.base)
        inputs = self.record.inputs or (InputSpec(shape=self.plan.input_shape),)
        rewrite(model, self.plan, meta_inputs(inputs), stage=stage)
        spec = self.record.base.spec.prepared(self.image.preparation)
        if "pretrained_cfg" in vars(model):  # what timm saves of a model, and prepares images by
            vars(model)["pretrained_cfg"] = spec.pretrained_cfg
        provenance = Provenance(
            spec=spec,
            plan=self.plan,
            weights=self.weights,
            stages=stage + 1,
            inputs=self.record.inputs,
        )
        attach(model, provenance)
        return model.to(self.device)

    def saver(self, stage: int) -> Save:
        """What keeps the models of a stage: the newest in `last`, the best in the stage's folder."""

        def keep(model: nn.Module, *, is_best: bool) -> None:
            save(model, self.folder / LAST)
            if is_best:
                _copy_checkpoint(self.folder / LAST, self.stage_folder(stage))

        return keep

    def promote(self, stage: int) -> None:
        """Makes the best model of a stage the run's own."""
        _copy_checkpoint(self.stage_folder(stage), self.folder)


def open_run(
    folder: Path,
    data: DataSettings,
    *,
    recipe: str | Path | Recipe | None,
    overrides: Sequence[str],
    device: torch.device,
    base: Base,
) -> Run:
    """Reads a run and its original.

    Raises:
        CheckpointError: no run, or not an intact one.
        RecipeError: a recipe whose rules are not those the run was converted with.
        DataError, ModelError: a model that takes no images or gives no logits.
    """
    record = read_record(folder)
    if record.plan is None or record.base.weights is None:
        raise CheckpointError(f"{folder}: holds a dense model and not a run; give it to reparam convert first")
    if record.packed is not None:
        raise CheckpointError(
            f"{folder}: is packed, so what was trained is gone; train the run that it was exported from"
        )
    plan = record.plan.model_copy(update={"recipe": _same_rules(record.plan, recipe, overrides, where=folder)})
    dense = load(folder / DENSE, base=base).to(device)
    image = format_of(record, data)
    return Run(
        folder=folder,
        record=record,
        plan=plan,
        weights=record.base.weights,
        base=base,
        dense=dense,
        image=image,
        num_classes=count_outputs(dense, image.input_size, device=device),
        device=device,
    )


def copy_run(source: Path, target: Path) -> Path:
    """Copies a run without what its training left, for a second training beside it."""
    if source.resolve() == target.resolve():
        return source
    _copy_checkpoint(source, target)
    _copy_checkpoint(source / DENSE, target / DENSE)
    return target


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Copies both files of a checkpoint at once, whatever else is in the target's folder."""
    with atomic_folder(target, keep_others=True) as draft:
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.copy2(source / name, draft / name)


def chosen_stages(plan: Plan, stage: int | None) -> tuple[int, ...]:
    """All stages of a plan, or the one that is asked for; raises OptionError when there is no such stage."""
    count = len(plan.stages)
    if stage is not None and not 0 <= stage < count:
        raise OptionError(f"stage {stage}: the run has {count} stages, 0 to {count - 1}")
    return tuple(range(count)) if stage is None else (stage,)


def _same_rules(plan: Plan, recipe: str | Path | Recipe | None, overrides: Sequence[str], *, where: Path) -> Recipe:
    asked = check_recipe(plan.recipe if recipe is None else recipe, overrides=overrides)
    difference = first_rule_difference(plan.recipe, asked)
    if difference is not None:
        raise RecipeError(
            f'{where} was converted by recipe "{plan.recipe.name}", and "{asked.name}" as asked for has other rules:\n'
            f"  {difference}\n"
            "For a run only the fine-tuning of a stage can be changed. Convert the model again."
        )
    return asked
