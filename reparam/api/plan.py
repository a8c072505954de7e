"""`reparam.plan`: what a recipe would change in a model, what it would not, and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from reparam.api.recipes import check_recipe
from reparam.api.subject import count_totals, resolve_subject
from reparam.graph.plan import make_plan
from reparam.graph.records import Plan
from reparam.recipe.schema import Recipe
from reparam.trace.probe import ExampleInput


def plan(
    model: str | nn.Module,
    recipe: str | Path | Recipe,
    *,
    example_input: ExampleInput | None = None,
    stages: int | None = None,
    allow_partial: bool = False,
    overrides: Sequence[str] = (),
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Plan:
    """Plans a recipe for a model; needs no weights and changes nothing.

    Args:
        model: timm name or shorthand, "hf-hub:...", "local-dir:...", "file.py:factory", or any module.
        recipe: shipped name, path of a .toml file, or a Recipe.
        example_input: a tensor the model takes, or a tuple of arguments; wanted for modules that timm does not know.
        stages: how many of the recipe's stages to plan; all when None.
        allow_partial: keep refused sites as they are instead of raising.
        overrides: changes of the recipe, such as "stage.0.rule.0.conv_kernel=5".
        num_classes: classes of a named model.
        img_size: side of its square images, in pixels.
        in_chans: channels of its images.
        model_kwargs: further arguments of its builder.
    Raises:
        ModelError: the model is unknown or cannot run on its input.
        RecipeError: the recipe cannot be found or has faults, all named at once.
        PlanError: rules that match nothing, or sites that were refused, all named at once.
    """
    checked = check_recipe(recipe, overrides=overrides)
    subject = resolve_subject(
        model,
        example_input=example_input,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        model_kwargs=model_kwargs,
        only_look=True,
    )
    return make_plan(
        subject.model,
        checked,
        subject.example_input,
        count=count_totals,
        stages=stages,
        allow_partial=allow_partial,
    )
