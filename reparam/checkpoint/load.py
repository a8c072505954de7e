"""Loading: rebuild the dense model without memory, convert it by the plan, put the weights in, and check the answer."""

import logging
from collections.abc import Callable
from pathlib import Path

from torch import nn

from reparam.checkpoint.golden import check_golden
from reparam.checkpoint.packing import unpack_tensors
from reparam.checkpoint.record import WEIGHTS_NAME, Head, Record, read_record
from reparam.errors import CheckpointError
from reparam.graph.provenance import Provenance, attach
from reparam.graph.rewrite import rewrite
from reparam.models.empty import build_empty, empty_copy, without_memory
from reparam.models.inputs import InputSpec, meta_inputs
from reparam.models.spec import ModelSpec
from reparam.models.state import assign_, on_meta, shortened
from reparam.models.weights import weights_digest
from reparam.models.weights_file import read_safetensors

logger = logging.getLogger(__name__)
_RESTORE = "Save the model again, or restore a copy."


def load(
    folder: str | Path, *, base: nn.Module | Callable[[], nn.Module] | None = None, check: bool = True
) -> nn.Module:
    """Loads the model that `save` or `export` wrote to `folder`, on the CPU and in eval mode.

    Args:
        base: the dense model, or a function that makes it, for models that timm does not know; it is not changed.
        check: compare the weights' digest and the golden logits with those of the saved model.

    Raises:
        CheckpointError: a missing, foreign, damaged or newer folder, a base that is wanted or does not fit, weights
            that do not fit, or outputs that differ from the saved model's.
    """
    folder = Path(folder)
    record = read_record(folder)
    try:
        model = _converted(_dense(record.base.spec, base, folder), record)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder}: the model cannot be rebuilt: {error}") from error
    _fill_(model, record, folder, check=check)
    model.eval()
    _remember(model, record)
    if check and record.golden is not None:
        check_golden(model, record.golden, where=str(folder))
    elif check:
        logger.warning("%s: no golden check, because %s", folder, record.golden_missing_because)
    return model


def _dense(spec: ModelSpec, base: nn.Module | Callable[[], nn.Module] | None, folder: Path) -> nn.Module:
    """The dense model with its parameters on the meta device."""
    if isinstance(base, nn.Module):
        return empty_copy(base)
    if base is not None:
        return empty_copy(_made(base, folder))
    if spec.source == "module":
        raise CheckpointError(
            f"{folder}: the model is of the class {spec.name}, which only you can build. Pass base=, a dense module of "
            "that class or a function that makes one."
        )
    if spec.source == "file" and Path(spec.name).resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"{folder}: the checkpoint asks to run {spec.name}, a file of its own. If you trust it, call the factory "
            "yourself and pass its model as base=."
        )
    return build_empty(spec)


def _made(factory: Callable[[], nn.Module], folder: Path) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{folder}: base() returned {type(model).__name__}, wanted a torch.nn.Module.")
    return model


def _converted(model: nn.Module, record: Record) -> nn.Module:
    if record.plan is not None:
        applied = record.plan.model_copy(update={"stages": record.plan.stages[: record.stages]})
        inputs = record.inputs or (InputSpec(shape=applied.input_shape),)
        model = rewrite(model, applied, meta_inputs(inputs), verify=False)
    if record.head is not None:
        _reset_head_(model, record.head)
    return model


def _reset_head_(model: nn.Module, head: Head) -> None:
    pool = {} if head.global_pool is None else {"global_pool": head.global_pool}
    with without_memory():
        model.reset_classifier(head.num_classes, **pool)  # type: ignore[operator]  # a method of timm's models


def _fill_(model: nn.Module, record: Record, folder: Path, *, check: bool) -> None:
    path = folder / WEIGHTS_NAME
    tensors = state = read_safetensors(path, error=CheckpointError, advice=_RESTORE)
    if record.packed is not None:
        state = unpack_tensors(tensors, record.packed, like=model.state_dict(), where=path)
    alone = {name: tensor for name, tensor in state.items() if record.tied.get(name) not in state}
    assign_(model, alone, tied=record.tied, where=str(path), error=CheckpointError, advice=_RESTORE)
    if empty := on_meta(model):
        raise CheckpointError(
            f"{path}: {len(empty)} tensors of the model are neither in the file nor made by its code: "
            f"{shortened(empty)}. They should be persistent buffers."
        )
    if check and weights_digest(tensors) != record.digest:
        raise CheckpointError(
            f"{path}: the weights are not those that {folder.name}/config.json was written for. {_RESTORE} "
            "To load them all the same, pass check=False."
        )


def _remember(model: nn.Module, record: Record) -> None:
    if record.plan is not None and record.base.weights is not None:
        base, plan, stages, inputs = record.base, record.plan, record.stages, record.inputs
        attach(model, Provenance(spec=base.spec, plan=plan, weights=record.base.weights, stages=stages, inputs=inputs))
