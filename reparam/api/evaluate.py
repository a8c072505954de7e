"""`reparam.evaluate`: accuracy of a run, of any checkpoint in it, or of a model by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from reparam.api.subject import is_checkpoint, resolve_subject
from reparam.atomic import write_text
from reparam.checkpoint.load import load
from reparam.checkpoint.record import Record, read_record
from reparam.errors import ModelError
from reparam.models.weights import load_weights
from reparam.recipe.data_settings import DataSettings
from reparam.train.data import ImageFormat, image_format, make_eval_loader
from reparam.train.engine import pick_device
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.regime import count_outputs

EVALUATION_NAME = "evaluate.json"


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
) -> Evaluation:
    """Measures a model on the evaluation split; a checkpoint folder gets the result as `evaluate.json`.

    Args:
        source: a run, its `dense` or one of its stages, or a model as `convert` takes it.
        data: which images.
        batch_size: images at a time.
        workers: loader processes.
        device: such as "cpu" or "cuda:1"; CUDA where there is one when None.
        weights: of a named model.
        num_classes: classes of a named model.
        img_size: side of its square images, in pixels.
        in_chans: channels of its images.
        model_kwargs: further arguments of its builder.
        base: the dense model of a checkpoint that only its owner can build.
    Raises:
        CheckpointError, ModelError, WeightsError: the model cannot be had.
        DataError: the data cannot be read, or does not fit the model.
    """
    where = pick_device(device)
    shape = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "model_kwargs": model_kwargs}
    if is_checkpoint(source):
        refuse_shape(source, shape)
        answerer = _of_checkpoint(Path(source), data, base=base)
    else:
        answerer = _of_name(str(source), data, weights=weights, shape=shape)
    model = answerer.model.to(where)
    classes = count_outputs(model, answerer.image.input_size, device=where)
    batches = make_eval_loader(
        data, image=answerer.image, num_classes=classes, batch_size=batch_size, workers=workers, device=where
    )
    evaluation = evaluate_model(model, batches, where)
    if is_checkpoint(source):
        write_evaluation(Path(source), evaluation)
    return evaluation


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Writes `evaluate.json` into a checkpoint folder, whole or not at all."""
    write_text(folder / EVALUATION_NAME, evaluation.model_dump_json(indent=2) + "\n")


def format_of(record: Record, data: DataSettings) -> ImageFormat:
    """What a checkpoint's model takes; its plan tells the size where its spec does not.

    Raises:
        ModelError: it takes no images.
    """
    spec, size = record.base.spec, record.base.spec.input_size
    if size is None and record.plan is not None and len(record.plan.input_shape) == 4:
        _, channels, height, width = record.plan.input_shape
        size = (channels, height, width)
    return image_format(data, input_size=_known(size, spec.name), model=spec.data)


def refuse_shape(source: str | Path, shape: Mapping[str, object]) -> None:
    """Raises ModelError for arguments that shape a model, given for one that exists."""
    given = [name for name, value in shape.items() if value]
    if given:
        raise ModelError(f"{', '.join(given)} shape a model when it is made; {source} is made already")


def _of_checkpoint(folder: Path, data: DataSettings, *, base: nn.Module | Callable[[], nn.Module] | None) -> Answerer:
    return Answerer(model=load(folder, base=base), image=format_of(read_record(folder), data))


def _of_name(name: str, data: DataSettings, *, weights: str, shape: dict[str, Any]) -> Answerer:
    subject = resolve_subject(name, **shape)
    image = image_format(data, input_size=_known(subject.spec.input_size, name), model=subject.spec.data)
    load_weights(subject.model, subject.spec, weights)
    return Answerer(model=subject.model, image=image)


def _known(size: tuple[int, int, int] | None, name: str) -> tuple[int, int, int]:
    if size is None:
        raise ModelError(f"nothing says which images {name} takes; give their size with --img-size")
    return size
