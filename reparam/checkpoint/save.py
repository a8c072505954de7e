"""Saving: a folder in timm's Hugging Face layout, complete or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf  # not re-exported, but the only writer of timm's config.json
from torch import Tensor, nn

from reparam.atomic import atomic_folder, refuse_foreign, writing
from reparam.checkpoint.golden import GoldenInputError, make_golden
from reparam.checkpoint.packing import PackedTensors, unpack_tensors
from reparam.checkpoint.record import CONFIG_NAME, WEIGHTS_NAME, Base, Golden, Head, Packed, Record
from reparam.checkpoint.tensors import file_tensors
from reparam.copying import copy_with
from reparam.errors import CheckpointError
from reparam.graph.provenance import Provenance, provenance_of, unwrapped
from reparam.lowering.base import lowered_path
from reparam.models.given import refuse_other
from reparam.models.inputs import InputSpec, input_specs
from reparam.models.known import is_timm, spec_of
from reparam.models.spec import CONVERTED_PREFIX, ModelSpec
from reparam.models.state import assign_
from reparam.models.weights import weights_digest
from reparam.ops.base import Operator


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    example_input: Tensor | Sequence[Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model` to `folder` as config.json and model.safetensors; timm itself reads it if nothing was converted.

    An older checkpoint there is replaced once the new one is complete; other files in the folder stay.

    Args:
        model: a converted model, or a dense one.
        example_input: what `forward` takes, a tensor or a tuple of arguments; only its shapes, dtypes and largest
            integers are kept. Needed where neither the spec nor the plan says it: tokens, or several arguments.
        extra: JSON-able notes, kept under "reparam.extra".

    Raises:
        CheckpointError: the folder is not reparam's to replace, or the model cannot be written faithfully.
        ModelError: `model` is no module.
    """
    refuse_other(model, nn.Module, wanted="a model to save")
    refuse_foreign(Path(folder).resolve())
    with atomic_folder(folder, keep_others=True) as draft:
        write_checkpoint(model, draft, example_input=example_input, extra=extra)


def write_checkpoint(
    model: nn.Module,
    draft: Path,
    *,
    example_input: Tensor | Sequence[Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes the two files of `save` into a folder that exists, for callers that make the whole folder atomic."""
    model = unwrapped(model)
    _refuse_lowered(model)
    tensors, tied = file_tensors(model)
    if not _is_converted(model) and is_timm(model):
        tensors |= {name: tensors[kept].clone() for name, kept in tied.items()}  # timm wants every name in the file
    _write(model, draft, tensors, tied=tied, packed=None, example_input=example_input, extra=dict(extra or {}))


def write_packed_checkpoint(
    model: nn.Module, draft: Path, packed: PackedTensors, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Writes a converted model's two files with the tensors that `pack_tensors` made of it.

    Golden logits are those of the model as it will be loaded: narrower floats change them.
    """
    stored, tensors = copy_with(unwrapped(model), parameter=torch.clone), packed.tensors
    state = unpack_tensors(tensors, packed.record, where=draft / WEIGHTS_NAME)
    assign_(stored, state, tied=packed.tied, where=str(draft), error=CheckpointError, advice="")
    extra = dict(extra or {})
    _write(stored, draft, tensors, tied=packed.tied, packed=packed.record, example_input=None, extra=extra)


def _write(
    model: nn.Module,
    draft: Path,
    tensors: dict[str, Tensor],
    *,
    tied: Mapping[str, str],
    packed: Packed | None,
    example_input: Tensor | Sequence[Any] | None,
    extra: dict[str, Any],
) -> None:
    provenance = provenance_of(model)
    spec = _dense_spec(model) if provenance is None else provenance.spec
    inputs, golden, missing = _golden(model, spec, provenance, example_input)
    record = Record(
        recipe=provenance.plan.recipe if provenance else None,
        plan=provenance.plan if provenance else None,
        stages=provenance.stages if provenance else None,
        inputs=inputs,
        base=_base(spec, provenance),
        head=_head(model, spec),
        tied=dict(tied),
        digest=weights_digest(tensors),
        golden=golden,
        golden_missing_because=missing,
        packed=packed,
        extra=extra,
    )
    config = json.dumps(_config(model, record), indent=2) + "\n"
    with writing(draft / CONFIG_NAME):
        (draft / CONFIG_NAME).write_text(config, encoding="utf-8")
    with writing(draft / WEIGHTS_NAME):
        _write_tensors(tensors, draft / WEIGHTS_NAME)
        shutil.copymode(draft / CONFIG_NAME, draft / WEIGHTS_NAME)  # safetensors lets only the owner read its files


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes them; what safetensors says of the file system becomes the OSError that it was."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        raise OSError(*((int(code[1]), os.strerror(int(code[1]))) if code else (str(error),))) from error


def _base(spec: ModelSpec, provenance: Provenance | None) -> Base:
    if provenance is None:
        return Base(spec=spec)
    return Base(spec=spec, weights=provenance.weights, digest=provenance.weights.sha256)


def _is_converted(model: nn.Module) -> bool:
    provenance = provenance_of(model)
    return provenance is not None and bool(provenance.plan.steps)


def _dense_spec(model: nn.Module) -> ModelSpec:
    converted = [name for name, module in model.named_modules() if isinstance(module, Operator)]
    if converted:
        raise CheckpointError(
            f"the model holds converted modules ({converted[0]} is one) but no record of its conversion, so it could "
            "not be loaded again. Save the model that reparam.convert returned."
        )
    return spec_of(model)


def _refuse_lowered(model: nn.Module) -> None:
    if (path := lowered_path(model)) is not None:
        raise CheckpointError(
            f"the model is lowered for inference ({path or 'itself'} is), and a lowered model is not saved. Save the "
            "converted model, and lower it again after loading."
        )


def _golden(
    model: nn.Module, spec: ModelSpec, provenance: Provenance | None, example_input: Tensor | Sequence[Any] | None
) -> tuple[tuple[InputSpec, ...] | None, Golden | None, str | None]:
    """The inputs that the model runs on and its golden values; or None for both, and why."""
    if example_input is not None:
        try:
            return (inputs := input_specs(example_input)), make_golden(model, inputs), None
        except GoldenInputError as error:
            raise CheckpointError(f"example_input: {error}. Pass what the model's forward takes.") from error
    fault = "no input shape is known"
    for inputs in _known_inputs(spec, provenance):
        try:
            return inputs, make_golden(model, inputs), None
        except GoldenInputError as error:
            fault = str(error)
    return None, None, fault


def _known_inputs(spec: ModelSpec, provenance: Provenance | None) -> list[tuple[InputSpec, ...]]:
    """What the model may take, best guess first: a plan tells the shape alone, so pixels, then tokens."""
    if provenance is not None and provenance.inputs is not None:
        return [provenance.inputs]
    shape = provenance.plan.input_shape if provenance else spec.input_size and (1, *spec.input_size)
    if shape is None:
        return []
    return [(InputSpec(shape=shape),), (InputSpec(shape=shape, dtype="int64"),)]


def _head(model: nn.Module, spec: ModelSpec) -> Head | None:
    """The classifier of a timm model that was reset since it was built, or None."""
    built_with = spec.kwargs.get("num_classes", spec.pretrained_cfg.get("num_classes"))
    classes = getattr(model, "num_classes", None)
    if spec.source in ("module", "file") or not isinstance(classes, int) or classes == built_with:
        return None
    pool = getattr(model, "global_pool", None)
    return Head(num_classes=classes, global_pool=pool if isinstance(pool, str) else None)


def _config(model: nn.Module, record: Record) -> dict[str, Any]:
    config = _timm_config(model) if is_timm(model) else _plain_config(model, record.base.spec)
    if record.plan is not None and record.plan.steps:
        config["architecture"] = f"{CONVERTED_PREFIX}{config['architecture']}"
    return config | {"reparam": record.model_dump(mode="json", by_alias=True)}


def _timm_config(model: nn.Module) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG_NAME
        with writing(path):
            save_config_for_hf(model, str(path))
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _plain_config(model: nn.Module, spec: ModelSpec) -> dict[str, Any]:
    return {
        "architecture": spec.name,
        "num_classes": getattr(model, "num_classes", spec.kwargs.get("num_classes")),
        "num_features": getattr(model, "num_features", None),
        "model_args": spec.kwargs,
        "pretrained_cfg": spec.pretrained_cfg,
    }
