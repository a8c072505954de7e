"""The `reparam` command: one verb per file. An error is a sentence and an exit code: 0 done, 1 failed, 2 bad input."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import reparam
from reparam_cli import (
    bench,
    convert,
    coverage,
    demo,
    evaluate,
    explain,
    export,
    finetune,
    models,
    plan,
    profile,
    recipes,
    report,
    search,
    sensitivity,
    verify,
)
from reparam_cli.argv import DEBUG, repeat_many_valued, take_debug
from reparam_cli.panels import SectionedCommand
from reparam_cli.streams import show_notes

app = typer.Typer(
    name="reparam",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    plan.plan,
    explain.explain,
    convert.convert,
    finetune.finetune,
    evaluate.evaluate,
    profile.profile,
    bench.bench,
    report.report,
    export.export,
    verify.verify,
    sensitivity.sensitivity,
    search.search,
    models.models,
    coverage.coverage,
    demo.demo,
):  # fmt: skip
    app.command(cls=SectionedCommand)(verb)
app.add_typer(recipes.app, name="recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"reparam {reparam.__version__}")
        raise typer.Exit


@app.callback()
def reparam_(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(DEBUG, envvar="REPARAM_DEBUG", help="Show tracebacks. May also stand after the verb."),
    ] = False,
) -> None:
    """Turn a pretrained vision model into a multiplication-reduced one, fine-tune it, and measure the gain."""


def main() -> None:
    """Entry point of the console script; leaves by SystemExit."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; with `--debug` an error's traceback precedes its sentence."""
    options, debug = take_debug(argv)
    debug = debug or os.environ.get("REPARAM_DEBUG", "0") not in ("", "0")
    show_notes()
    try:
        app(repeat_many_valued(options), prog_name="reparam")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        if code == 130:
            _complain("stopped by the keyboard; what was already saved is intact", debug=debug)
        return code
    except reparam.errors.ReparamError as error:
        return _complain(str(error), debug=debug, code=2)
    except OSError as error:
        return _complain(_describe(error), debug=debug, code=2)
    except Exception as error:
        if _is_out_of_memory(error):
            return _complain(f"out of memory: {error}\nSmaller batches or images need less.", debug=debug, code=1)
        hint = "This is a bug in reparam: please report it with the traceback that --debug shows."
        return _complain(f"unexpected {type(error).__name__}: {error}\n{hint}", debug=debug, code=1)
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """Told by name: torch has a class for accelerators alone, and is not loaded by every verb."""
    return (
        isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error)
    )


def _describe(error: OSError) -> str:
    named = f"{error.filename}: " if error.filename is not None else ""
    return f"{named}{error.strerror or error}"


def _complain(sentence: str, *, debug: bool, code: int = 130) -> int:
    if debug:
        traceback.print_exc()
    print("error: " + sentence.replace("\n", "\n       "), file=sys.stderr)
    return code
