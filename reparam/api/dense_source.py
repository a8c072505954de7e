"""What a sensitivity analysis works on: the dense model of a run, of a checkpoint or by name, and the recipes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from reparam.api.convert import DENSE
from reparam.api.evaluate import open_checkpoint, open_named, refuse_shape
from reparam.api.recipes import check_recipe
from reparam.api.subject import is_checkpoint
from reparam.checkpoint.record import read_record
from reparam.errors import CheckpointError, ModelError, RecipeError
from reparam.models.file_formats import is_model_file
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.schema import Recipe
from reparam.train.data import ImageFormat

Recipes = str | Path | Recipe | Sequence[str | Path | Recipe]


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSource:
    """A dense model in eval mode, its images, the recipes, and the folder that results go to by default.

    `allow_partial` says that refused sites are no error: those of a run were accepted when it was converted.
    """

    name: str
    model: nn.Module
    image: ImageFormat
    recipes: tuple[Recipe, ...]
    folder: Path
    allow_partial: bool


def open_dense(
    source: str | Path,
    recipes: Recipes | None,
    *,
    data: DataSettings,
    overrides: Sequence[str] = (),
    allow_partial: bool = False,
    weights: str = "hub",
    shape: Mapping[str, Any],
    base: nn.Module | Callable[[], nn.Module] | None = None,
) -> DenseSource:
    """Opens the dense original of a run, a dense checkpoint folder, or a model by name.

    Raises:
        CheckpointError, ModelError, WeightsError: the model cannot be had, or is no dense one.
        RecipeError: no recipe, or one with faults.
    """
    if is_model_file(source):
        raise ModelError(f"{source}: an exported file cannot be converted; name the model that it was made from")
    chosen = _checked(recipes, overrides)
    if not is_checkpoint(source):
        opened = open_named(str(source), data, weights=weights, shape=dict(shape))
        return DenseSource(
            name=str(source),
            model=opened.model.eval(),
            image=opened.image,
            recipes=_wanted(chosen, source),
            folder=Path(),
            allow_partial=allow_partial,
        )
    refuse_shape(source, shape, weights=weights)
    folder = Path(source)
    plan = read_record(folder).plan
    if plan is not None and not plan.steps:  # trained by a recipe that converts nothing: dense itself
        plan = None
    if plan is not None and not (folder / DENSE).is_dir():
        raise CheckpointError(
            f"{folder} holds a converted model without its dense original; give the run, whose {DENSE} folder has it"
        )
    opened = open_checkpoint(folder if plan is None else folder / DENSE, data, base=base)
    return DenseSource(
        name=str(source),
        model=opened.model.eval(),
        image=opened.image,
        recipes=_wanted(chosen or (() if plan is None else (plan.recipe,)), source),
        folder=folder,
        allow_partial=allow_partial or (plan is not None and not chosen),
    )


def as_sequence(recipes: Recipes | None) -> tuple[str | Path | Recipe, ...]:
    """One recipe, several, or none as a tuple."""
    if recipes is None:
        return ()
    return (recipes,) if isinstance(recipes, str | Path | Recipe) else tuple(recipes)


def _checked(recipes: Recipes | None, overrides: Sequence[str]) -> tuple[Recipe, ...]:
    given = as_sequence(recipes)
    if overrides and not given:
        raise RecipeError("overrides change a recipe that is named; add --recipe NAME")
    if overrides and len(given) > 1:
        raise RecipeError(f"overrides change one recipe, and {len(given)} were given; write the changes into files")
    return tuple(check_recipe(recipe, overrides=overrides) for recipe in given)


def _wanted(recipes: tuple[Recipe, ...], source: str | Path) -> tuple[Recipe, ...]:
    if not recipes:
        raise RecipeError(f"{source} is no run, whose recipe would be taken; name one or more with --recipe")
    return recipes
