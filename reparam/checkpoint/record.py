"""config.json: timm's own keys, and the `reparam` object that says how the model was made and how to check it."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from reparam.errors import CheckpointError
from reparam.graph.records import Plan
from reparam.models.inputs import InputSpec
from reparam.models.spec import ModelSpec
from reparam.models.weights import WeightsRecord
from reparam.ops.shift_packing import PackedShift
from reparam.recipe.schema import Frozen, Recipe

CHECKPOINT_FORMAT = 1
PACKED_FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class Base(Frozen):
    """The dense model under a conversion: how to build it, and the weights it had."""

    spec: ModelSpec
    weights: WeightsRecord | None = None
    digest: str | None = None


class Golden(Frozen):
    """A few outputs of a seeded input, in eval mode, on the CPU, in float32.

    `inputs` says all about the input; `input_shape` and `input_dtype` are those of its first tensor, for readers.
    """

    seed: int
    input_shape: tuple[int, ...]
    input_dtype: str
    inputs: tuple[InputSpec, ...]
    logits: tuple[tuple[float, ...], ...]
    atol: float


class Head(Frozen):
    """A classifier that was reset after the conversion."""

    num_classes: int
    global_pool: str | None = None


class Packed(Frozen):
    """How the tensors of a packed model are read; `packing.py` says what they are called.

    `shift` is by path of the shift layer, `int8` and `masks` (their shapes) by name of the tensor.
    """

    version: int = PACKED_FORMAT
    shift: dict[str, PackedShift] = Field({})
    int8: tuple[str, ...] = ()
    masks: dict[str, tuple[int, ...]] = Field({})


class Record(Frozen):
    """The `reparam` object of config.json.

    `plan` is None for a dense model. `inputs` is what the model was planned for. `tied` maps names to the name whose
    tensor they share and which alone need be in the file. `digest` is over the tensors in the file. Either `golden` or
    `golden_missing_because` is given. `packed` is None for a model whose tensors are in the file as they are.
    """

    format_version: int = CHECKPOINT_FORMAT
    recipe: Recipe | None = None
    plan: Plan | None = None
    stages: int | None = None
    inputs: tuple[InputSpec, ...] | None = None
    base: Base
    head: Head | None = None
    tied: dict[str, str] = Field({})
    digest: str
    golden: Golden | None = None
    golden_missing_because: str | None = None
    packed: Packed | None = None
    extra: dict[str, Any] = Field({})


def read_record(folder: Path) -> Record:
    """Reads the `reparam` object of a checkpoint folder.

    Raises:
        CheckpointError: no such folder, a folder without it, broken JSON, or a format this version does not know.
    """
    config = _read_config(folder)
    if "reparam" not in config:
        raise CheckpointError(
            f'{folder}: config.json has no "reparam" object, so it is not a reparam checkpoint. If timm wrote it, '
            f'use the model "local-dir:{folder}".'
        )
    table = config["reparam"]
    packed = table.get("packed") if isinstance(table, dict) else None
    _refuse_newer(table, "format_version", CHECKPOINT_FORMAT, what="checkpoint format", folder=folder)
    _refuse_newer(packed, "version", PACKED_FORMAT, what="packed format", folder=folder)
    try:
        return Record.model_validate(table)
    except ValidationError as error:
        raise CheckpointError(f"{folder}: config.json is damaged at {_first(error)}. Save the model again.") from error


def _refuse_newer(table: object, key: str, newest: int, *, what: str, folder: Path) -> None:
    version = table.get(key) if isinstance(table, dict) else None
    if isinstance(version, int) and version > newest:
        raise CheckpointError(
            f"{folder}: {what} {version} is newer than {newest}, the newest this version of reparam reads. Upgrade "
            "reparam."
        )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: {_missing(folder)}. Wanted a folder that reparam convert or reparam.save has written."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not intact JSON ({error}). Save the model again, or restore a copy.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: wanted a JSON object, got {type(config).__name__}. Save the model again.")
    return config


def _missing(folder: Path) -> str:
    if folder.is_dir():
        return f"the folder has no {CONFIG_NAME}"
    return "it is a file" if folder.exists() else "there is no such folder"


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    more = f" (and {error.error_count() - 1} more places)" if error.error_count() > 1 else ""
    return f'"reparam.{".".join(str(part) for part in fault["loc"])}": {fault["msg"]}{more}'
