"""For models whose forward reads values of tensors: a copy and an input that have values, and what was read where.

A run on the meta device fails at the first `.item()` or `if tensor:`. A run on values goes on, but shows one branch.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.copying import copy_with, to_meta
from reparam.trace.record import Ref, Trace

M = TypeVar("M", bound=nn.Module)
#: How large drawn weights are; timm and Hugging Face initialise transformers so.
_DRAWN_STD = 0.02
#: torch names the device in whatever it raises when an operation needs values that meta tensors do not have.
_SPEAKS_OF_META = re.compile(r"(?<![a-z])meta(?![a-z])", re.IGNORECASE)
#: `bool(x)` reads a value, `x.bool()` makes a tensor: only the underscores tell them apart.
_TO_PYTHON = {
    "__bool__", "__float__", "__index__", "__int__", "allclose", "equal", "is_nonzero", "item", "numpy", "tolist",
}  # fmt: skip
_SIZED_BY_VALUES = {"argwhere", "bincount", "masked_select", "nonzero", "unique", "unique_consecutive"}


def needs_values(error: BaseException) -> bool:
    """Whether a run on the meta device failed because it has no values."""
    return bool(_SPEAKS_OF_META.search(str(error)))


def reads_values(function: Any, args: Sequence[Any]) -> bool:
    """Whether a torch function hands values to Python, or makes a shape of them."""
    name = getattr(function, "__name__", "")
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index)
    return name in _TO_PYTHON | _SIZED_BY_VALUES or (name == "where" and len(args) == 1)


def may_change(trace: Trace, operands: Iterable[Ref]) -> bool:
    """Whether one of the values depends on the model's input, parameters or buffers, and is no constant of its code."""
    return any(
        trace.depends_on_input(ref) or ref.name or any(leaf.name for op in trace.ancestors(ref) for leaf in op.inputs)
        for ref in operands
    )


def with_values(model: M) -> M:
    """A deep copy whose parameters and buffers have values: their own, or small seeded random numbers on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: Tensor) -> Tensor:
        return _drawn(tensor, generator) * _DRAWN_STD if tensor.is_meta else tensor.clone()

    def fill_buffer(tensor: Tensor) -> Tensor:
        return torch.ones_like(tensor, device="cpu") if tensor.is_meta else tensor.clone()

    return copy_with(model, parameter=fill, buffer=fill_buffer)


def arguments_with_values(args: tuple[Any, ...], *, like: nn.Module) -> tuple[Any, ...]:
    """The arguments on the device of a module; those without values are drawn from a seeded normal distribution."""
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in like.parameters()), torch.device("cpu"))

    def fill(tensor: Tensor) -> Tensor:
        return (_drawn(tensor, generator) if tensor.is_meta else tensor).to(device)

    filled: tuple[Any, ...] = pytree.tree_map_only(Tensor, fill, args)
    return filled


def _drawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def forget_values_(trace: Trace) -> None:
    """Replaces the tensors of a record, other than parameters, by meta tensors; what was one tensor stays one."""
    made: dict[int, Tensor] = {}

    def forget(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return tensor
        return made.setdefault(id(tensor), to_meta(tensor))

    kept = trace.tensors  # alive until the end, so that no identity is used twice
    trace.tensors = [forget(tensor) for tensor in kept]
    for number, call in enumerate(trace.calls):
        args, kwargs = pytree.tree_map_only(Tensor, forget, (call.args, call.kwargs))
        trace.calls[number] = replace(call, args=args, kwargs=kwargs)


def unseen(trace: Trace, reason: str) -> tuple[str, ...]:
    """What a run on values could not see, in words for the plan."""
    if not trace.reads:
        return (f"it ran on values, because without them it does not run: {reason}",)
    return tuple(
        f"{_place(path)} reads values of tensors ({', '.join(sorted(names))}), so only what ran on this input is known"
        for path, names in trace.reads.items()
    )


def _place(path: str) -> str:
    return f'the forward of "{path}"' if path else "the model's own forward"
