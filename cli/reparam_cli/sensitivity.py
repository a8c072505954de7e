"""`reparam sensitivity`: what each site loses when it alone is converted, ranked."""

from pathlib import Path
from typing import Annotated, Any

import typer

import reparam
from reparam_cli.options import (
    AllowPartial,
    AsJson,
    BatchSize,
    Device,
    Fresh,
    ImgSize,
    InChans,
    ModelKwargs,
    NumClasses,
    Overrides,
    Source,
    Weights,
    Workers,
    parse_pairs,
    with_options_of,
)
from reparam_cli.streams import only_results_on_stdout, plain, print_json

RecipeNames = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="A shipped recipe or a .toml file; may be repeated to try several operators for a site.",
        show_default="the run's own",
    ),
]
Images = Annotated[
    int, typer.Option("--images", min=1, help="Evaluation images, evenly spaced over the split; all if it has fewer.")
]
PrefixMemory = Annotated[
    float,
    typer.Option(
        "--prefix-memory",
        metavar="GB",
        min=0,
        help="For what one module gets of all images, so that what lies before it runs once; 0 runs whole networks.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.json",
        help="Result; pictures and journal lie beside it.",
        show_default="sensitivity.json",
    ),
]


@with_options_of(data=reparam.DataSettings)
def sensitivity(
    source: Source,
    *,
    recipe: RecipeNames = None,
    overrides: Overrides = None,
    allow_partial: AllowPartial = False,
    weights: Weights = "hub",
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    model_kwargs: ModelKwargs = None,
    images: Images = 1000,
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: Device = None,
    prefix_memory: PrefixMemory = 2.0,
    out: Out = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    data: dict[str, Any],
) -> None:
    """Convert one site at a time, untrained, and rank the sites by what that does to the answers.

    The result is written to sensitivity.json in the folder of a run, or here, for `reparam search`. A run that was
    stopped goes on where it stopped.
    """
    arguments = parse_pairs(model_kwargs, flag="--model-kwargs")
    from reparam_cli.render.screen import message_console, show  # Rich, imported only when needed
    from reparam_cli.render.sensitivity import sensitivity_progress_on, sensitivity_view

    with only_results_on_stdout(), sensitivity_progress_on(message_console()) as progress:
        found = reparam.sensitivity(
            source,
            recipe,
            data=reparam.DataSettings(**data),
            images=images,
            batch_size=batch_size,
            workers=workers,
            device=device,
            prefix_memory_gb=prefix_memory,
            overrides=overrides or (),
            allow_partial=allow_partial,
            weights=weights,
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            model_kwargs=arguments,
            out=out,
            fresh=fresh,
            progress=progress,
        )
    if as_json:
        print_json(plain(found))
    else:
        show(sensitivity_view(found))
