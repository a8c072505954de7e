"""`reparam.verify`: whether two models compute the same, and the first layer where they part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from reparam.api.check_images import images_for
from reparam.api.evaluate import format_by, open_checkpoint, open_named, refuse_shape
from reparam.api.subject import is_checkpoint
from reparam.compare.difference import Comparison
from reparam.compare.onnx_layers import record_onnx
from reparam.compare.pt2_layers import record_pt2
from reparam.compare.recording import Recorder, record_modules
from reparam.compare.records import Verification
from reparam.errors import ModelError, OptionError
from reparam.graph.provenance import provenance_of
from reparam.models.file_formats import is_model_file, open_model_file
from reparam.models.given import refuse_other
from reparam.models.known import spec_of
from reparam.models.model_file import ModelFile
from reparam.models.onnx_file import OnnxModel
from reparam.models.pt2_file import Pt2Model
from reparam.recipe.data_settings import DataSettings
from reparam.train.data import ImageFormat, image_format

#: Images that run together: the outputs of all layers of both models are held for them.
_TOGETHER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two models: its name, how it runs, and the images it takes, None where it does not say.

    `prepares` says that it knows how its images are prepared; `batch_size` is that of a file made for one.
    """

    name: str
    record: Recorder
    image: ImageFormat | None
    prepares: bool
    batch_size: int | None = None


def verify(
    a: str | Path | nn.Module,
    b: str | Path | nn.Module,
    *,
    data: DataSettings | None = None,
    images: int = 16,
    tolerance: float = 1e-3,
    weights: str = "hub",
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    base: nn.Module | Callable[[], nn.Module] | None = None,
) -> Verification:
    """Runs two models on the same images, on the CPU in eval mode, and compares outputs and layers; A is the reference.

    Layers are the modules of the same path. Those of an ONNX or .pt2 file are found by the module that torch's exporter
    wrote beside each operation; a file without these notes is compared by its outputs alone.

    Args:
        a: a run, its `dense` or one of its stages, a model as `convert` takes it, a module, or an .onnx or .pt2 file.
        b: likewise.
        data: where images come from, evenly spaced over the evaluation split; without, seeded random ones.
        images: how many.
        tolerance: largest relative error, ||b - a|| / ||a||, of outputs and layers that counts as equal.
        weights: of a named model.
        num_classes: classes of a named model.
        img_size: side of its square images, in pixels; of a file that takes any.
        in_chans: channels of its images; of a file that takes any.
        model_kwargs: further arguments of its builder.
        base: the dense model of a checkpoint that only its owner can build.
    Raises:
        CheckpointError, ModelError, WeightsError: a model cannot be had, or the two do not take the same images or
            give the same number of outputs.
        DataError: the data cannot be read.
        OptionError: no images, or a tolerance below 0.
    """
    for side in (a, b):
        refuse_other(side, (nn.Module, str, Path), wanted="a model by name, a module, a folder or a file")
    if images < 1 or not tolerance >= 0:
        raise OptionError(f"wanted at least 1 image and a tolerance of at least 0, got {images} and {tolerance}")
    settings = data or DataSettings()
    shape = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "model_kwargs": model_kwargs}
    if all(is_checkpoint(side) or isinstance(side, nn.Module) for side in (a, b)):
        refuse_shape(_name(a), shape, weights=weights)
    sides = [_open(side, settings, weights=weights, shape=shape, base=base) for side in (a, b)]
    fed, words = images_for(_common_format(sides), settings, count=images)
    together = min([_TOGETHER, *(side.batch_size for side in sides if side.batch_size)])
    comparison = Comparison(sides[0].name, sides[1].name)
    for batch in fed.split(together):
        comparison.add(*(side.record(batch) for side in sides))
    return comparison.verdict(data=words, tolerance=tolerance)


def _open(
    source: str | Path | nn.Module,
    data: DataSettings,
    *,
    weights: str,
    shape: dict[str, Any],
    base: nn.Module | Callable[[], nn.Module] | None,
) -> Side:
    if isinstance(source, nn.Module):
        return _of_module(source, data)
    if is_model_file(source):
        return _of_file(source, data, img_size=shape["img_size"], in_chans=shape["in_chans"])
    opened = (
        open_checkpoint(Path(source), data, base=base)
        if is_checkpoint(source)
        else open_named(str(source), data, weights=weights, shape=shape)
    )
    return Side(name=str(source), record=record_modules(opened.model.eval()), image=opened.image, prepares=True)


def _of_module(model: nn.Module, data: DataSettings) -> Side:
    made = provenance_of(model)
    spec, plan = (spec_of(model), None) if made is None else (made.spec, made.plan)
    known = None if spec.input_size is None and plan is None else format_by(spec, plan, data)
    if model.training:
        raise ModelError(f"{_name(model)} is in training mode, whose outputs are random or follow the batch; eval() it")
    return Side(name=_name(model), record=record_modules(model), image=known, prepares=known is not None)


def _of_file(source: str | Path, data: DataSettings, *, img_size: int | None, in_chans: int | None) -> Side:
    model = open_model_file(source)
    has_size = None not in model.image or img_size is not None
    size = model.image_size(img_size=img_size, in_chans=in_chans) if has_size else None
    return Side(
        name=str(source),
        record=_recorder(model),
        image=None if size is None else image_format(data, input_size=size, model=model.preparation),
        prepares=bool(model.preparation),
        batch_size=model.batch_size,
    )


def _recorder(model: ModelFile) -> Recorder:
    if isinstance(model, OnnxModel):
        return record_onnx(model)
    assert isinstance(model, Pt2Model)
    return record_pt2(model)


def _common_format(sides: list[Side]) -> ImageFormat:
    """What both take, prepared as the first of them says that knows."""
    told = [side for side in sides if side.image is not None]
    if not told:
        raise ModelError(
            f"neither {sides[0].name} nor {sides[1].name} says the size of its images; give --img-size "
            "where one is a file, or compare with a run or a converted model"
        )
    sizes = [side.image.input_size for side in told if side.image is not None]
    if len(set(sizes)) > 1:
        (a, b), (of_a, of_b) = sides, ("x".join(map(str, size)) for size in sizes)
        raise ModelError(f"{a.name} takes images of {of_a} and {b.name} of {of_b}; both must take the same")
    chosen = next((side for side in told if side.prepares), told[0]).image
    assert chosen is not None
    return chosen


def _name(source: str | Path | nn.Module) -> str:
    return type(source).__name__ if isinstance(source, nn.Module) else str(source)
