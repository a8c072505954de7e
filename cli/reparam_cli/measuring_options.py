"""Options of the verbs that measure."""

from typing import Annotated

import typer

BatchSizes = Annotated[
    list[str] | None,
    typer.Option(
        "-b", "--batch-size", metavar="N[,N...]", help="Images per forward; may be repeated.", show_default="1"
    ),
]
Baselines = Annotated[
    str,
    typer.Option(
        "--baselines",
        metavar="quick|all|none|NAME,...",
        help="Ways to run the dense original: quick is eager in fp32 and bf16, all also compiles and exports.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Threads of the CPU.", show_default="torch's own number")
]


def numbers(words: list[str], *, flag: str) -> list[int]:
    """Reads `1,8` and repeated options of it."""
    try:
        return [int(number) for word in words for number in word.split(",")]
    except ValueError:
        raise typer.BadParameter(f'wanted numbers, got "{",".join(words)}"', param_hint=flag) from None
