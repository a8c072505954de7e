"""`reparam export`: a run in a format to deploy."""

from pathlib import Path
from typing import Annotated, Any

import typer

import reparam
from reparam_cli.options import AsJson
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Run = Annotated[str, typer.Argument(metavar="RUN", help="A folder that convert or finetune wrote.", show_default=False)]
Format = Annotated[str, typer.Option("--format", metavar="packed", help="What to write.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="PATH", help="Where to write.", show_default="in RUN, by the format's name"),
]
_PACKED = "Packed"
Floats = Annotated[
    str | None,
    typer.Option(
        "--floats",
        metavar="float16|bf16|float32",
        help="Type of parameters that are no shift weights.",
        show_default="float16",
        rich_help_panel=_PACKED,
    ),
]
Experts = Annotated[
    str | None,
    typer.Option(
        "--experts",
        metavar="int8|float16|bf16|float32",
        help="Type of the weights of multiply experts; int8 has a scale per channel.",
        show_default="that of --floats",
        rich_help_panel=_PACKED,
    ),
]


def export(
    run: Run,
    *,
    format: Format,
    out: Out = None,
    floats: Floats = None,
    experts: Experts = None,
    as_json: AsJson = False,
) -> None:
    """Write a run in a format to deploy: packed, a folder with shift weights in the bits that they need."""
    given = {"floats": floats, "experts": experts}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with only_results_on_stdout():
        exported = reparam.export(run, format, out=out, **options)
    if as_json:
        print_json(plain(exported))
        return
    from reparam_cli.render.export import export_view  # Rich, imported only when needed
    from reparam_cli.render.screen import show

    show(export_view(exported))
