"""`reparam finetune`: the recipe's stages, each trained and distilled from the dense original."""

from typing import Annotated, Any, Literal

import typer

import reparam
from reparam_cli.options import (
    AllowPartial,
    AsJson,
    Device,
    ImgSize,
    InChans,
    ModelKwargs,
    NumClasses,
    Out,
    Overrides,
    Source,
    Weights,
    parse_pairs,
    with_options_of,
)
from reparam_cli.streams import only_results_on_stdout, plain, print_json

RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="Recipe for a model by name; a run carries its own."),
]
Resume = Annotated[
    Literal["auto"] | None,
    typer.Option("--resume", help="Go on where the run's training was stopped, or begin.", show_default=False),
]
OnlyStage = Annotated[int | None, typer.Option("--stage", min=0, help="Train this stage only; 0 is the first.")]
FindLr = Annotated[
    bool, typer.Option("--find-lr", help="Train nothing; test learning rates on the first stage and suggest one.")
]


@with_options_of(data=reparam.DataSettings, settings=reparam.TrainSettings)
def finetune(
    source: Source,
    *,
    recipe: RecipeName = None,
    stage: OnlyStage = None,
    resume: Resume = None,
    weights: Weights = "hub",
    overrides: Overrides = None,
    allow_partial: AllowPartial = False,
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    model_kwargs: ModelKwargs = None,
    device: Device = None,
    out: Out = None,
    find_lr: FindLr = False,
    as_json: AsJson = False,
    data: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Fine-tune the stages of a run's recipe, distilled from the dense original.

    A flag that is given wins over the recipe's own setting, which wins over the default shown here.
    """
    # Rich, imported only when there is something to draw.
    from reparam_cli.render.results import finetune_view, rate_test_view
    from reparam_cli.render.screen import message_console, show
    from reparam_cli.render.training import progress_on

    arguments: dict[str, Any] = {
        "recipe": recipe,
        "data": reparam.DataSettings(**data),
        "settings": settings,
        "stage": stage,
        "weights": weights,
        "out": out,
        "overrides": overrides or (),
        "num_classes": num_classes,
        "img_size": img_size,
        "in_chans": in_chans,
        "model_kwargs": parse_pairs(model_kwargs, flag="--model-kwargs"),
        "allow_partial": allow_partial,
        "device": device,
    }
    with only_results_on_stdout(), progress_on(message_console()) as progress:
        if find_lr:
            test = reparam.find_lr(source, progress=progress, **arguments)
        else:
            result = reparam.finetune(source, resume=resume, progress=progress, **arguments)
    if as_json:
        print_json(plain(test if find_lr else result))
    elif find_lr:
        show(rate_test_view(test))
    else:
        show(finetune_view(result))
        print(f"saved to {result.out}")
    if not find_lr and result.stopped:
        raise typer.Exit(1)
