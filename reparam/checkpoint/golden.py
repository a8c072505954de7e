"""Golden logits: a saved model must answer a seeded input as it did when it was saved."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam.checkpoint.record import Golden
from reparam.copying import copy_with
from reparam.errors import CheckpointError
from reparam.models.inputs import InputSpec, seeded_inputs, with_batch
from reparam.modes import evaluating

_BATCH = 2
_VALUES = 16
_SEED = 0
_NUDGE = 1e-6


class GoldenInputError(Exception):
    """The model does not run on the input it is said to take."""


def make_golden(model: nn.Module, inputs: Sequence[InputSpec]) -> Golden:
    """Runs `model` on seeded inputs, with two samples if it can, and keeps up to 16 values of each sample.

    Rounding differs between machines, and a quantiser can turn a rounding difference into a step; so the tolerance is
    1e-4 of the largest value, or four times what nudging the input by 1e-6 changes, whichever is larger.

    Raises:
        GoldenInputError: the model fails on the inputs, or returns no tensor.
    """
    fault: Exception | None = None
    for tried in dict.fromkeys([with_batch(inputs, _BATCH), tuple(inputs)]):
        try:
            arguments = seeded_inputs(tried, seed=_SEED)
            values = _values(model, arguments)
            nudged = _values(model, tuple(map(_nudged, arguments)))
        except Exception as error:  # whatever a model raises on an input that is not for it
            fault = error
            continue
        return Golden(
            seed=_SEED,
            input_shape=tried[0].shape or (),
            input_dtype=tried[0].dtype,
            inputs=tried,
            logits=tuple(map(tuple, values.tolist())),
            atol=_tolerance(values, nudged),
        )
    raise GoldenInputError(f"the model does not run on its input: {fault}")


def check_golden(model: nn.Module, golden: Golden, *, where: str) -> None:
    """Raises CheckpointError, with the largest difference, when `model` no longer gives the golden values."""
    try:
        values = _values(model, seeded_inputs(golden.inputs, seed=golden.seed))
        wanted = torch.tensor(golden.logits, dtype=torch.float32)
    except Exception as error:
        raise CheckpointError(f"{where}: the golden check cannot run: {error}. Was the checkpoint edited?") from error
    if values.shape != wanted.shape:
        raise CheckpointError(
            f"{where}: the model's outputs have changed: wanted {tuple(wanted.shape)} golden values, got "
            f"{tuple(values.shape)}. Save it again, or load with check=False."
        )
    if not torch.allclose(values, wanted, rtol=0.0, atol=golden.atol, equal_nan=True):
        difference = (values - wanted).abs().max().item()
        raise CheckpointError(
            f"{where}: the loaded model's outputs differ from those it had when it was saved: the largest difference "
            f"is {difference:.3g}, allowed are {golden.atol:.3g}. Save it again with this version of reparam and "
            "torch, or load with check=False."
        )


def _values(model: nn.Module, arguments: Sequence[Any]) -> Tensor:
    """(samples, up to 16) float32: the head of each row of the first tensor that `model` returns, on the CPU."""
    ready = _on_cpu_in_float32(model)
    with evaluating(ready), torch.no_grad(), torch.autocast("cpu", enabled=False):
        output = _first_tensor(ready(*arguments))
    samples = next((a.shape[0] for a in arguments if isinstance(a, Tensor) and a.ndim), 1)
    rows = output.reshape(samples, -1) if output.ndim and output.shape[0] == samples else output.reshape(1, -1)
    return rows[:, :_VALUES].float()


def _tolerance(values: Tensor, nudged: Tensor) -> float:
    if not values.numel() or not torch.isfinite(values).all():
        return 1e-4
    scale = max(1.0, values.abs().max().item())
    step = (values - nudged).abs().max().item()
    return max(1e-4 * scale, min(4 * step, 0.05 * scale))


def _nudged(argument: Any) -> Any:
    return argument * (1 + _NUDGE) if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def _first_tensor(output: object) -> Tensor:
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    for part in parts:
        try:
            return _first_tensor(part)
        except TypeError:
            continue
    raise TypeError(f"wanted a tensor, or a tuple, list or dict that holds one, got {type(output).__name__}")


def _on_cpu_in_float32(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    if all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in tensors):
        return model
    return copy_with(model, parameter=_in_float32, buffer=_in_float32)


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
