"""`reparam plan`: what a recipe would change, what it would not, and why; no weights, nothing written."""

from typing import TYPE_CHECKING

import reparam
from reparam_cli.options import (
    AllowPartial,
    AsJson,
    ImgSize,
    InChans,
    Model,
    ModelKwargs,
    NumClasses,
    Overrides,
    RecipeName,
    StageNumber,
    parse_pairs,
    stage_count,
)
from reparam_cli.streams import only_results_on_stdout, plain, print_json

if TYPE_CHECKING:
    from reparam import Plan


def plan(
    model: Model,
    *,
    recipe: RecipeName,
    stage: StageNumber = None,
    overrides: Overrides = None,
    allow_partial: AllowPartial = False,
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    model_kwargs: ModelKwargs = None,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe would change in a model, what stays, and why. Needs no weights and writes nothing."""
    arguments = parse_pairs(model_kwargs, flag="--model-kwargs")
    with only_results_on_stdout():
        made = reparam.plan(
            model,
            recipe,
            stages=stage_count(stage),
            allow_partial=allow_partial,
            overrides=overrides or (),
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            model_kwargs=arguments,
        )
    if as_json:
        print_json(plain(made))
    else:
        show_plan(made, model=model)


def show_plan(made: "Plan", *, model: str) -> None:
    """Prints a plan as a tree."""
    from reparam_cli.render.plan import plan_view  # Rich, imported only when there is something to draw
    from reparam_cli.render.screen import show

    show(plan_view(made, model=model))
