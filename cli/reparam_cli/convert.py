"""`reparam convert`: plan, rewrite, verify and save; `--dry-run` stops after the plan."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
    with_options_of,
)
from reparam_cli.plan import plan, show_plan
from reparam_cli.streams import only_results_on_stdout, plain, print_json

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show the plan, as `reparam plan` does.")]
CalibrationDir = Annotated[
    Path | None,
    typer.Option(
        "--calibration-dir",
        metavar="DIR",
        help="Folder of pictures, labels or none, for layers with init = calibrated.",
    ),
]
CalibrationImages = Annotated[
    int | None,
    typer.Option(
        "--calibration-images",
        min=32,
        max=1024,
        show_default="128",
        help="How many are taken, spread over all there are.",
    ),
]

TuneSteps = Annotated[
    int,
    typer.Option(
        "--tune-steps",
        min=0,
        help="Steps of tuning biases and norms of each block once its layers are calibrated; 100 to 300 are plenty.",
    ),
]


@with_options_of(data=reparam.DataSettings)
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
    calibration_dir: CalibrationDir = None,
    calibration_images: CalibrationImages = None,
    tune_steps: TuneSteps = 0,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    data: dict[str, Any],
) -> None:
    """Convert a model by a recipe, verify the result, and save it to a new folder (default: runs/MODEL-RECIPE).

    A recipe that calibrates takes its pictures from --calibration-dir, or from the training split of a data set.
    """
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
    from reparam_cli.render.calibration import calibration_progress_on, calibration_view  # Rich, only when needed
    from reparam_cli.render.screen import message_console, show

    with only_results_on_stdout(), calibration_progress_on(message_console()) as progress:
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
            calibration=_pictures(calibration_dir, data),
            calibration_images=calibration_images,
            tune_steps=tune_steps,
            progress=progress,
            out=folder,
        )
    if as_json:
        found = {} if conversion.calibration is None else {"calibration": plain(conversion.calibration)}
        print_json({"out": str(folder), "plan": plain(conversion.plan), **found})
        return
    show_plan(conversion.plan, model=model)
    if conversion.calibration is not None:
        show(calibration_view(conversion.calibration))
    print(f"saved to {folder}")


def _pictures(folder: Path | None, data: dict[str, Any]) -> reparam.DataSettings | None:
    """Where to calibrate from, if that is said."""
    settings = reparam.DataSettings(**data)
    if folder is not None and not folder.exists():
        raise typer.BadParameter(f"{folder}: no such folder", param_hint="--calibration-dir")
    if folder is None:
        return settings if settings.data_dir or settings.dataset else None
    if settings.data_dir or settings.dataset:
        raise typer.BadParameter(
            "is one source of pictures, and --data-dir or --dataset another; leave one out",
            param_hint="--calibration-dir",
        )
    return replace(settings, data_dir=str(folder))
