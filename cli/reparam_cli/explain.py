"""`reparam explain`: why one module becomes what it becomes, or stays, and what to write to change it."""

from typing import Annotated

import typer

import reparam
from reparam_cli.options import AsJson, ImgSize, InChans, ModelKwargs, NumClasses, Overrides, parse_pairs
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL|RUN", help="A model by name, or a folder that convert wrote.", show_default=False),
]
Path = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="Dotted path of a module or parameter, or a glob in quotes ('blocks.*.attn').",
        show_default=False,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="A shipped recipe or a .toml file. Default: shiftaddvit; a run has its own.",
        show_default=False,
    ),
]


def explain(
    model: Model,
    path: Path,
    *,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    model_kwargs: ModelKwargs = None,
    as_json: AsJson = False,
) -> None:
    """Explain one module: the rule or test that decides in each stage, and what to write to change it."""
    arguments = parse_pairs(model_kwargs, flag="--model-kwargs")
    with only_results_on_stdout():
        explanation = reparam.explain(
            model,
            path,
            recipe=recipe,
            overrides=overrides or (),
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            model_kwargs=arguments,
        )
    if as_json:
        print_json(plain(explanation))
        return
    from reparam_cli.render.explain import show_explanation  # Rich, imported only when there is something to draw

    show_explanation(explanation)
