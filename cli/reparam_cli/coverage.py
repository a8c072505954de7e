"""`reparam coverage`: many timm architectures converted and checked, each in a bounded process of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import reparam
from reparam_cli.options import Fresh
from reparam_cli.streams import only_results_on_stdout
from reparam_cli.survey_options import Everything, Jobs, MemoryGb, Patterns, SurveyRecipe, Timeout

if TYPE_CHECKING:
    from reparam import Coverage

AtDepth = Annotated[
    str, typer.Option("--depth", metavar="plan|full", help="plan needs no weights; full converts, runs and reloads.")
]
Representatives = Annotated[
    bool,
    typer.Option("--representatives", help="Only the smallest of each family, class and set of module classes."),
]
Page = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Markdown page to write.", show_default=False)]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Result to write; its journal lies beside it.",
        show_default="runs/coverage-RECIPE-DEPTH.json",
    ),
]
Joined = Annotated[
    list[Path] | None,
    typer.Option("--join", metavar="FILE", help="Show this earlier result on the page too; may be repeated."),
]
MaxParams = Annotated[
    str, typer.Option("--max-params", metavar="COUNT", help="Leave out the full depth above this size: 700M, 1.5G.")
]
Retry = Annotated[bool, typer.Option("--retry", help="Examine again what failed in an earlier run.")]
_SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}


def coverage(
    patterns: Patterns = None,
    *,
    everything: Everything = False,
    recipe: SurveyRecipe = "shiftaddvit",
    depth: AtDepth = "plan",
    representatives: Representatives = False,
    out: Page = None,
    json_file: JsonFile = None,
    joined: Joined = None,
    jobs: Jobs = 1,
    timeout: Timeout = 600.0,
    memory_gb: MemoryGb = 10.0,
    max_params: MaxParams = "700M",
    fresh: Fresh = False,
    retry: Retry = False,
) -> None:
    """Convert and check many timm architectures, each in a process bounded in time and memory.

    A run that was stopped goes on where it stopped. Exit code 1 if any architecture fails.
    """
    if not patterns and not everything:
        raise typer.BadParameter("name architectures or globs, or say --all", param_hint="PATTERN")
    if depth not in ("plan", "full"):
        raise typer.BadParameter(f'wanted plan or full, got "{depth}"', param_hint="--depth")
    from reparam_cli.render.coverage import survey_progress_on  # Rich, imported only when there is something to draw
    from reparam_cli.render.screen import message_console

    options: Any = {"depth": depth}
    with only_results_on_stdout(), survey_progress_on(message_console()) as progress:
        made = reparam.coverage(
            patterns or "*",
            **options,
            recipe=recipe,
            representatives=representatives,
            json_file=json_file,
            out=out,
            joined=joined or (),
            jobs=jobs,
            timeout=timeout,
            memory_gb=memory_gb,
            max_params=parse_count(max_params),
            fresh=fresh,
            retry=retry,
            progress=progress,
        )
    _show(made)
    if made.failed:
        raise typer.Exit(1)


def parse_count(text: str) -> int:
    """Reads `700M`, `1.5G`, `20k` or plain digits."""
    number, factor = (text[:-1], _SUFFIXES[text[-1]]) if text[-1:] in _SUFFIXES else (text, 1.0)
    try:
        count = int(float(number) * factor)
    except (ValueError, OverflowError):
        count = -1
    if count < 0:
        raise typer.BadParameter(f'wanted a count such as 20k, 700M or 1.5G, got "{text}"', param_hint="--max-params")
    return count


def _show(made: "Coverage") -> None:
    from reparam_cli.render.coverage import coverage_view
    from reparam_cli.render.screen import show

    show(coverage_view(made))
