"""What a model is fed, without the data: shapes and dtypes, from which meta tensors or seeded random ones are made."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class InputSpec(BaseModel):
    """One argument of a forward: a tensor of `shape` and `dtype` (integers lie below `high`), or a constant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    high: int = 2
    constant: Any = None


def input_specs(example_input: Tensor | Sequence[Any]) -> tuple[InputSpec, ...]:
    """Describes an example input: one tensor, or a sequence of positional arguments."""
    arguments = [example_input] if isinstance(example_input, Tensor) else list(example_input)
    return tuple(_spec(a) if isinstance(a, Tensor) else InputSpec(constant=a) for a in arguments)


def with_batch(specs: Sequence[InputSpec], size: int) -> tuple[InputSpec, ...]:
    """The same inputs with `size` samples, if all tensors have one batch size; else unchanged."""
    batches = {spec.shape[:1] for spec in specs if spec.shape is not None}
    if len(batches) != 1 or batches == {()}:
        return tuple(specs)
    return tuple(
        spec if spec.shape is None else spec.model_copy(update={"shape": (size, *spec.shape[1:])}) for spec in specs
    )


def meta_inputs(specs: Sequence[InputSpec]) -> tuple[Any, ...]:
    """The arguments as tensors without data."""
    return tuple(
        spec.constant if spec.shape is None else torch.empty(spec.shape, dtype=_dtype(spec), device="meta")
        for spec in specs
    )


def seeded_inputs(specs: Sequence[InputSpec], *, seed: int) -> tuple[Any, ...]:
    """The arguments as CPU tensors: floats from a normal distribution, integers below `high`; the same on each call."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return tuple(spec.constant if spec.shape is None else _drawn(spec, spec.shape, generator) for spec in specs)


def _spec(tensor: Tensor) -> InputSpec:
    is_readable = tensor.numel() > 0 and tensor.device.type != "meta" and not tensor.is_floating_point()
    high = max(int(tensor.max()), 1) + 1 if is_readable else 2
    return InputSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."), high=high)


def _drawn(spec: InputSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype = _dtype(spec)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=dtype, device="cpu")
    return torch.randint(spec.high, shape, generator=generator, device="cpu").to(dtype)


def _dtype(spec: InputSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f'torch has no dtype "{spec.dtype}"')
    return dtype
