"""`reparam evaluate`: accuracy with its interval on an evaluation split."""

from pathlib import Path
from typing import Annotated, Any

import typer

import reparam
from reparam_cli.options import (
    AsJson,
    BatchSize,
    Device,
    ImgSize,
    InChans,
    ModelKwargs,
    NumClasses,
    Weights,
    Workers,
    parse_pairs,
    with_options_of,
)
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Source = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL|FILE",
        help="A folder that reparam wrote, a model by name, or an .onnx or .pt2 file.",
        show_default=False,
    ),
]
PerClass = Annotated[bool, typer.Option("--per-class", help="Add recall and precision of each class, worst first.")]
Confusion = Annotated[
    Path | None,
    typer.Option("--confusion", metavar="FILE", help="Draw the confusion matrix: .png, .svg, or .csv for its counts."),
]


@with_options_of(data=reparam.DataSettings)
def evaluate(
    source: Source,
    *,
    weights: Weights = "hub",
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    model_kwargs: ModelKwargs = None,
    batch_size: BatchSize = 256,
    workers: Workers = 2,
    device: Device = None,
    per_class: PerClass = False,
    confusion: Confusion = None,
    as_json: AsJson = False,
    data: dict[str, Any],
) -> None:
    """Evaluate a run, a model or an exported file on a data set; accuracy comes with its 95 % interval."""
    arguments = parse_pairs(model_kwargs, flag="--model-kwargs")
    with only_results_on_stdout():
        evaluation = reparam.evaluate(
            source,
            data=reparam.DataSettings(**data),
            batch_size=batch_size,
            workers=workers,
            device=device,
            weights=weights,
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            model_kwargs=arguments,
            per_class=per_class,
            confusion=confusion,
        )
    if as_json:
        print_json(plain(evaluation))
        return
    from reparam_cli.render.results import classes_view, evaluation_view  # Rich, imported only when needed
    from reparam_cli.render.screen import show

    show(evaluation_view(evaluation, source=source))
    if per_class:
        show(classes_view(evaluation))
