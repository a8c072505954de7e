"""`reparam bench`: converted models beside the engines that people would pick for the original."""

from pathlib import Path
from typing import Annotated

import typer

import reparam
from reparam_cli.measuring_options import Baselines, BatchSizes, Threads, numbers
from reparam_cli.options import AsJson, Device, Fresh, Overrides
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL|RUN...", help="Models by name, or folders of runs.", show_default=False),
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="How named models are converted.", show_default=False),
]
ImgSizes = Annotated[
    list[str] | None,
    typer.Option(
        "--img-size", metavar="S[,S...]", help="Sides of the images of named models.", show_default="each model's own"
    ),
]
Lowered = Annotated[
    str,
    typer.Option(
        "--lowered", metavar="all|none|NAME,...", help="Ways to run the converted models, such as int8+compiled."
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="none|hub|FILE", help="Weights of named models; none for random ones.")
]
Limit = Annotated[
    float, typer.Option("--limit", metavar="SECONDS", help="An engine that would take longer in a table is left out.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.json", help="Write the result here, and go on after a stop.")
]


def bench(
    models: Models,
    *,
    recipe: Recipe = None,
    overrides: Overrides = None,
    img_size: ImgSizes = None,
    batch_size: BatchSizes = None,
    baselines: Baselines = "all",
    lowered: Lowered = "all",
    threads: Threads = None,
    device: Device = None,
    weights: Weights = "none",
    limit: Limit = 60.0,
    out: Out = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Time converted models, lowered and compiled, beside the fastest engines for their originals."""
    from reparam_cli.render.screen import message_console, show  # Rich, imported only when needed
    from reparam_cli.render.training import progress_on

    with only_results_on_stdout(), progress_on(message_console()) as progress:
        found = reparam.bench(
            models,
            recipe,
            img_size=None if img_size is None else numbers(img_size, flag="--img-size"),
            batch_size=numbers(batch_size or ["1"], flag="--batch-size"),
            baselines=baselines,
            lowered=lowered,
            threads=threads,
            device=device,
            weights=weights,
            overrides=overrides or (),
            limit=limit,
            out=out,
            fresh=fresh,
            progress=progress,
        )
    if as_json:
        print_json(plain(found))
        return
    from reparam_cli.render.bench import bench_view

    show(bench_view(found))
