"""Options that `models` and `coverage` share."""

from typing import Annotated

import typer

Patterns = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATTERN...]", help="timm names, shorthands, or globs such as 'swin*'.", show_default=False
    ),
]
SurveyRecipe = Annotated[
    str,
    typer.Option("--recipe", metavar="NAME|FILE", help="A shipped recipe or a .toml file; its rules become optional."),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes at once, one thread each.")]
MemoryGb = Annotated[
    float, typer.Option("--memory", metavar="GB", min=0, help="Memory for each architecture, in GB, on Linux.")
]
Everything = Annotated[bool, typer.Option("--all", help="Every architecture of timm.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds for each architecture.")]
