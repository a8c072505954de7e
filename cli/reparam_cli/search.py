"""`reparam search`: the mix of measured choices that loses least under a budget, as a recipe."""

from pathlib import Path
from typing import Annotated

import typer

import reparam
from reparam_cli.options import AsJson
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Analysis = Annotated[
    str,
    typer.Argument(
        metavar="RUN|FILE.json",
        help="What `reparam sensitivity` wrote, or the folder that holds it.",
        show_default="sensitivity.json here",
    ),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="QUANTITY=VALUE",
        help="energy, multiplications or size: 0.4x of the dense model's, or with a unit (3.2uJ, 2M, 300kB); may be "
        "repeated.",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop", metavar="POINTS", help="Most top-1 that the mix may lose by prediction, before any training."
    ),
]
Minimise = Annotated[
    str, typer.Option("--minimise", metavar="QUANTITY", help="What is made least where no budget is given.")
]
Table = Annotated[
    str, typer.Option("--table", metavar="NAME|FILE", help="Energy of each operation: a shipped table or a .toml file.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.toml",
        help="Recipe to write; the result and the chart get its name.",
        show_default="searched.toml beside the analysis",
    ),
]


def search(
    source: Analysis = ".",
    *,
    budget: Budget = None,
    max_drop: MaxDrop = None,
    minimise: Minimise = "energy",
    table: Table = "horowitz-45nm",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Choose an operator for each site so that least is lost under a budget, and write the recipe.

    Losses are predicted: they are what each site loses alone, added up. Without a budget, the cheapest mix under
    --max-drop is taken. A budget that no mix meets ends with exit code 2 and what can be reached.
    """
    with only_results_on_stdout():
        result = reparam.search(source, budget=budget or (), max_drop=max_drop, minimise=minimise, table=table, out=out)
    if as_json:
        print_json(plain(result))
        return
    from reparam_cli.render.screen import show  # Rich, imported only when there is something to draw
    from reparam_cli.render.search import search_view

    show(search_view(result))
    print(f"recipe written to {result.recipe}")
