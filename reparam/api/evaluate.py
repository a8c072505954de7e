"""`reparam.evaluate`: accuracy of a run, of any checkpoint in it, of a model by name, or of an ONNX or .pt2 file."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from reparam.api.subject import is_checkpoint, resolve_subject
from reparam.atomic import check_file, write_text
from reparam.checkpoint.load import load
from reparam.checkpoint.record import Record, read_record
from reparam.errors import CheckpointError, ModelError
from reparam.graph.records import Plan
from reparam.models.file_formats import is_model_file, open_model_file
from reparam.models.spec import ModelSpec
from reparam.models.weights import load_weights
from reparam.recipe.data_settings import DataSettings
from reparam.reporting.confusion import check_confusion_file, write_confusion
from reparam.train.data import ImageFormat, image_format, make_eval_loader
from reparam.train.engine import pick_device
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.regime import count_outputs

EVALUATION_NAME = "evaluate.json"
CONFUSION_NAME = "confusion.csv"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerer:
    """A model with its weights, and the images it takes."""

    model: nn.Module
    image: ImageFormat


def evaluate(
    source: str | Path,
    *,
    data: DataSettings,
    batch_size: int = 256,
    workers: int = 2,
    device: str | None = None,
    weights: str = "hub",
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    base: nn.Module | Callable[[], nn.Module] | None = None,
    per_class: bool = False,
    confusion: str | Path | None = None,
) -> Evaluation:
    """Measures a model on the evaluation split; a checkpoint folder gets the result as `evaluate.json`.

    Args:
        source: a run, its `dense` or one of its stages, a model as `convert` takes it, or an `.onnx` or `.pt2` file.
        data: which images. How they are prepared for a file, only the settings can tell; else timm's defaults.
        batch_size: images at a time.
        workers: loader processes.
        device: such as "cpu" or "cuda:1"; CUDA where there is one when None. A file is run on the CPU.
        weights: of a named model.
        num_classes: classes of a named model.
        img_size: side of its square images, in pixels; of a file that takes any.
        in_chans: channels of its images; of a file that takes any.
        model_kwargs: further arguments of its builder.
        base: the dense model of a checkpoint that only its owner can build.
        per_class: fill `per_class` and `confusion` of the result; a checkpoint folder gets `confusion.csv` too.
        confusion: a .png, .svg or .csv file to write the confusion matrix to; asks for `per_class` too.
    Raises:
        CheckpointError, ModelError, WeightsError: the model cannot be had.
        DataError: the data cannot be read, or does not fit the model.
        OptionError: `confusion` cannot be drawn.
    """
    if confusion is not None:
        check_confusion_file(confusion)
    shape = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "model_kwargs": model_kwargs}
    if is_checkpoint(source):
        refuse_shape(source, shape, weights=weights)
        check_file(Path(source) / EVALUATION_NAME)
        where, answerer = pick_device(device), open_checkpoint(Path(source), data, base=base)
    elif is_model_file(source):
        where, answerer = torch.device("cpu"), _of_file(str(source), data, device=device, weights=weights, shape=shape)
    else:
        where, answerer = pick_device(device), open_named(str(source), data, weights=weights, shape=shape)
    model = answerer.model.to(where)
    outputs = count_outputs(model, answerer.image.input_size, device=where)
    batches, classes = make_eval_loader(
        data, image=answerer.image, num_classes=outputs, batch_size=batch_size, workers=workers, device=where
    )
    wants_classes = per_class or confusion is not None
    evaluation = evaluate_model(model, batches, where, classes=classes if wants_classes else None)
    if confusion is not None:
        write_confusion(confusion, evaluation)
    if is_checkpoint(source):
        write_evaluation(Path(source), evaluation)
    return evaluation


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Writes `evaluate.json` into a checkpoint folder, and `confusion.csv` beside it where there is a matrix."""
    write_text(folder / EVALUATION_NAME, evaluation.model_dump_json(indent=2) + "\n")
    if evaluation.confusion is None:
        (folder / CONFUSION_NAME).unlink(missing_ok=True)  # that of another evaluation
    else:
        write_confusion(folder / CONFUSION_NAME, evaluation)


def read_evaluation(folder: Path) -> Evaluation | None:
    """Returns what `evaluate` or `finetune` left in a checkpoint folder, or None; raises CheckpointError if damaged."""
    path = folder / EVALUATION_NAME
    if not path.is_file():
        return None
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except ValidationError:
        advice = f"remove it, or run: reparam evaluate {folder}"
        raise CheckpointError(f"{path} is not what reparam wrote; {advice}") from None


def format_of(record: Record, data: DataSettings) -> ImageFormat:
    """What a checkpoint's model takes; its plan tells the size where its spec does not.

    Raises:
        ModelError: it takes no images.
    """
    return format_by(record.base.spec, record.plan, data)


def format_by(spec: ModelSpec, plan: Plan | None, data: DataSettings) -> ImageFormat:
    """What a model takes by its spec, and by the plan it was converted with; raises ModelError where neither says."""
    size = spec.input_size
    if size is None and plan is not None and len(plan.input_shape) == 4:
        _, channels, height, width = plan.input_shape
        size = (channels, height, width)
    return image_format(data, input_size=_known(size, spec.name), model=spec.data)


def refuse_shape(source: str | Path, shape: Mapping[str, object], *, weights: str = "hub") -> None:
    """Raises ModelError for arguments that shape a model, given for one that exists; weights other than its own too."""
    given = [name for name, value in {**shape, "weights": "" if weights == "hub" else weights}.items() if value]
    if given:
        verb, them = ("shapes", "it") if len(given) == 1 else ("shape", "them")
        raise ModelError(
            f"{', '.join(given)} {verb} a model when it is made; {source} is made already, with weights of its own. "
            f"Leave {them} out, or name the model that it was made from."
        )


def open_checkpoint(folder: Path, data: DataSettings, *, base: nn.Module | Callable[[], nn.Module] | None) -> Answerer:
    """The model of a checkpoint folder; raises CheckpointError, and ModelError for one that takes no images."""
    return Answerer(model=load(folder, base=base), image=format_of(read_record(folder), data))


def open_named(name: str, data: DataSettings, *, weights: str, shape: dict[str, Any]) -> Answerer:
    """A named model with its weights; raises ModelError and WeightsError, as `evaluate` does."""
    subject = resolve_subject(name, **shape)
    image = image_format(data, input_size=_known(subject.spec.input_size, name), model=subject.spec.data)
    load_weights(subject.model, subject.spec, weights)
    return Answerer(model=subject.model, image=image)


def _of_file(name: str, data: DataSettings, *, device: str | None, weights: str, shape: dict[str, Any]) -> Answerer:
    sides = {key: shape[key] for key in ("img_size", "in_chans")}
    others = {key: value for key, value in shape.items() if key not in sides}
    refuse_shape(name, others, weights=weights)
    if device not in (None, "cpu"):
        raise ModelError(f"{name}: an exported file is run on the CPU; leave --device {device} out")
    model = open_model_file(name)
    image = image_format(data, input_size=model.image_size(**sides), model=model.preparation)
    prepared = {"mean": data.mean, "std": data.std, "crop_pct": data.crop_pct, "interpolation": data.interpolation}
    told = {key for key, given in prepared.items() if given} | model.preparation.keys()
    defaults = [f"{key} {_words(getattr(image, key))}" for key in prepared if key not in told]
    if defaults:
        logger.info("%s does not say how images are prepared; timm's defaults: %s", name, ", ".join(defaults))
    return Answerer(model=model, image=image)


def _words(value: object) -> str:
    return " ".join(f"{figure:.4g}" for figure in value) if isinstance(value, tuple) else str(value)


def _known(size: tuple[int, int, int] | None, name: str) -> tuple[int, int, int]:
    if size is None:
        raise ModelError(f"nothing says which images {name} takes; give their size with --img-size")
    return size
