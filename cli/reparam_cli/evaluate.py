"""`reparam evaluate`: accuracy with its interval on an evaluation split."""

from typing import Annotated, Any

import typer

import reparam
from reparam_cli.options import (
    AsJson,
    Device,
    ImgSize,
    InChans,
    ModelKwargs,
    NumClasses,
    Source,
    Weights,
    parse_pairs,
    with_options_of,
)
from reparam_cli.streams import only_results_on_stdout, plain, print_json

BatchSize = Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Images at a time.")]
Workers = Annotated[int, typer.Option("-j", "--workers", min=0, help="Loader processes.")]


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
    as_json: AsJson = False,
    data: dict[str, Any],
) -> None:
    """Evaluate a run or a model on a data set; accuracy comes with its 95 % interval."""
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
        )
    if as_json:
        print_json(plain(evaluation))
        return
    from reparam_cli.render.results import evaluation_view  # Rich, imported only when there is something to draw
    from reparam_cli.render.screen import show

    show(evaluation_view(evaluation, source=source))
