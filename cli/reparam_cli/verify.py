"""`reparam verify`: whether two models compute the same, and the first layer where they part."""

from typing import Annotated, Any

import typer

import reparam
from reparam_cli.options import AsJson, ImgSize, InChans, ModelKwargs, NumClasses, Weights, parse_pairs, with_options_of
from reparam_cli.streams import only_results_on_stdout, plain, print_json

_TAKES = "A folder that reparam wrote, a model by name, or an .onnx or .pt2 file"
SideA = Annotated[str, typer.Argument(metavar="A", help=f"{_TAKES}; the reference.", show_default=False)]
SideB = Annotated[str, typer.Argument(metavar="B", help="What is compared with it; likewise.", show_default=False)]
Images = Annotated[int, typer.Option("--images", min=1, help="How many, spread over the evaluation split.")]
Tolerance = Annotated[float, typer.Option("--tolerance", min=0.0, help="Largest relative error that counts as equal.")]


@with_options_of(data=reparam.DataSettings)
def verify(
    a: SideA,
    b: SideB,
    *,
    images: Images = 16,
    tolerance: Tolerance = 1e-3,
    weights: Weights = "hub",
    num_classes: NumClasses = None,
    img_size: ImgSize = None,
    in_chans: InChans = None,
    model_kwargs: ModelKwargs = None,
    as_json: AsJson = False,
    data: dict[str, Any],
) -> None:
    """Compare two models on the same images, layer by layer; without data, on random ones.

    Exit code 1 if their outputs differ by more than the tolerance.
    """
    arguments = parse_pairs(model_kwargs, flag="--model-kwargs")
    with only_results_on_stdout():
        verification = reparam.verify(
            a,
            b,
            data=reparam.DataSettings(**data),
            images=images,
            tolerance=tolerance,
            weights=weights,
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            model_kwargs=arguments,
        )
    if as_json:
        print_json(plain(verification))
    else:
        from reparam_cli.render.screen import show  # Rich, imported only when there is something to draw
        from reparam_cli.render.verify import verification_view

        show(verification_view(verification))
    if not verification.agree:
        raise typer.Exit(1)
