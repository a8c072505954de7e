"""`reparam convert`: plan, rewrite, verify and save; `--dry-run` stops after the plan."""

from typing import Annotated

import typer

import reparam
from reparam_cli.options import (
    AllowPartial,
    AsJson,
    ImgSize,
    InChans,
    Model,
    ModelKwargs,
    NumClasses,
    Out,
    Overrides,
    RecipeName,
    StageNumber,
    Weights,
    default_out,
    parse_pairs,
    stage_count,
)
from reparam_cli.plan import plan, show_plan
from reparam_cli.streams import only_results_on_stdout, plain, print_json

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show the plan, as `reparam plan` does.")]


def convert(
    model: Model,
    *,
    recipe: RecipeName,
    weights: Weights = "hub",
    stage: StageNumber = None,
    overrides: Overrides = None,
    allow_partial: AllowPartial = False,
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    model_kwargs: ModelKwargs = None,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Convert a model by a recipe, verify the result, and save it to a new folder (default: runs/MODEL-RECIPE)."""
    if dry_run:
        plan(
            model,
            recipe=recipe,
            stage=stage,
            overrides=overrides,
            allow_partial=allow_partial,
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            model_kwargs=model_kwargs,
            as_json=as_json,
        )
        return
    folder = out or default_out(model, recipe)
    arguments = parse_pairs(model_kwargs, flag="--model-kwargs")
    with only_results_on_stdout():
        conversion = reparam.convert(
            model,
            recipe,
            weights=weights,
            stages=stage_count(stage),
            allow_partial=allow_partial,
            overrides=overrides or (),
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            model_kwargs=arguments,
            out=folder,
        )
    if as_json:
        print_json({"out": str(folder), "plan": plain(conversion.plan)})
        return
    show_plan(conversion.plan, model=model)
    print(f"saved to {folder}")
