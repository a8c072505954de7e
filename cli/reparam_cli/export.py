"""`reparam export`: a run in a format to deploy."""

from pathlib import Path
from typing import Annotated, Any

import typer

import reparam
from reparam_cli.options import AsJson, with_options_of
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Run = Annotated[str, typer.Argument(metavar="RUN", help="A folder that convert or finetune wrote.", show_default=False)]
Format = Annotated[str, typer.Option("--format", metavar="packed|onnx|pt2", help="What to write.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="PATH", help="Where to write.", show_default="in RUN, by the format's name"),
]
_PACKED, _PROGRAM = "Packed", "ONNX and pt2"
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
DynamicBatch = Annotated[
    bool | None,
    typer.Option(
        "--dynamic-batch/--fixed-batch",
        help="Take batches of any size, or of one.",
        show_default="dynamic-batch",
        rich_help_panel=_PROGRAM,
    ),
]
FixedSize = Annotated[
    int | None,
    typer.Option(
        "-b", "--batch-size", min=1, help="The size of a fixed batch.", show_default="1", rich_help_panel=_PROGRAM
    ),
]
Opset = Annotated[
    int | None,
    typer.Option("--opset", help="Version of ONNX's operators.", show_default="21", rich_help_panel=_PROGRAM),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Add code for this machine's CPU to a .pt2, by AOTInductor.", rich_help_panel=_PROGRAM
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        min=0.0,
        help="Largest relative error of the file's outputs; it is not left behind beyond.",
        show_default="0.01",
        rich_help_panel=_PROGRAM,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images",
        min=1,
        help="How many to check the file on, spread over the evaluation split.",
        show_default="32",
        rich_help_panel=_PROGRAM,
    ),
]


@with_options_of(data=reparam.DataSettings)
def export(
    run: Run,
    *,
    format: Format,
    out: Out = None,
    floats: Floats = None,
    experts: Experts = None,
    dynamic_batch: DynamicBatch = None,
    batch_size: FixedSize = None,
    opset: Opset = None,
    compile: Compile = False,
    tolerance: Tolerance = None,
    images: Images = None,
    as_json: AsJson = False,
    data: dict[str, Any],
) -> None:
    """Write a run in a format to deploy: packed in the bits that its weights need, or a program, ONNX or pt2.

    A program is run and compared with the run on images, random ones where no data is given.
    """
    given = {
        "floats": floats,
        "experts": experts,
        "dynamic_batch": dynamic_batch,
        "batch_size": batch_size,
        "opset": opset,
        "compile": compile or None,
        "tolerance": tolerance,
        "images": images,
        "data": reparam.DataSettings(**data) if data else None,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    from reparam_cli.render.screen import message_console, show  # Rich, imported only when there is something to draw
    from reparam_cli.render.training import progress_on

    with only_results_on_stdout(), progress_on(message_console()) as progress:
        exported = reparam.export(run, format, out=out, progress=progress, **options)
    if as_json:
        print_json(plain(exported))
        return
    from reparam_cli.render.export import export_view

    show(export_view(exported))
