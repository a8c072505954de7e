"""`reparam report`: one HTML page about a run, or two side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

import reparam
from reparam_cli.options import AsJson, with_options_of
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A folder that reparam convert or finetune wrote.", show_default=False)
]
RunB = Annotated[
    Path | None, typer.Argument(metavar="RUN_B", help="Another one, to be shown beside it.", show_default=False)
]
OutFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="File to write.", show_default="RUN/report.html")
]
Images = Annotated[int, typer.Option("--images", min=0, help="Images of the routing map; 0 leaves it out.")]
NoLatency = Annotated[bool, typer.Option("--no-latency", help="Time nothing.")]


@with_options_of(data=reparam.DataSettings)
def report(
    run: Run,
    run_b: RunB = None,
    *,
    out: OutFile = None,
    images: Images = 8,
    no_latency: NoLatency = False,
    as_json: AsJson = False,
    data: dict[str, Any],
) -> None:
    """Write one HTML page about a run, or two side by side, that needs no other file and no network."""
    from reparam_cli.render.results import report_view  # Rich, imported only when there is something to draw
    from reparam_cli.render.screen import message_console, show
    from reparam_cli.render.training import progress_on

    with only_results_on_stdout(), progress_on(message_console()) as progress:
        made = reparam.report(
            run,
            run_b,
            out=out,
            data=reparam.DataSettings(**data) if data else None,
            images=images,
            measure=not no_latency,
            progress=progress,
        )
    if as_json:
        print_json(plain(made))
    else:
        show(report_view(made))
