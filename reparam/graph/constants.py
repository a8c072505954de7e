"""What a value that does not depend on the input contains: its operations run again, from the model's own buffers."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from reparam.trace.record import Op, Ref, Trace


def constant_value(trace: Trace, ref: Ref) -> Tensor | None:
    """Returns a value on the CPU; None when it depends on the input, a parameter, or a tensor that is not known."""
    key = (constant_value, ref.number)
    if key not in trace.memo:
        trace.memo[key] = _value(trace, ref)
    found: Tensor | None = trace.memo[key]
    return found


def _value(trace: Trace, ref: Ref) -> Tensor | None:
    if ref.number in trace.known:
        return trace.known[ref.number].detach().cpu()
    op = trace.producer(ref)
    if op is None or trace.depends_on_input(ref):
        return None
    operands = {operand.number: _operand(trace, operand) for operand in op.inputs}
    if any(value is None for value in operands.values()):
        return None
    return _run_again(op, operands)[op.outputs.index(ref)]


def _operand(trace: Trace, ref: Ref) -> Tensor | None:
    """A copy for an operation that may write to it; of the input, makers of constants read the shape and type alone."""
    if trace.depends_on_input(ref):
        return torch.zeros(ref.shape, dtype=trace.tensors[ref.number].dtype)
    value = constant_value(trace, ref)
    return None if value is None else value.clone()


def _run_again(op: Op, operands: dict[int, Tensor | None]) -> list[Tensor]:
    def put(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return operands[leaf.number]
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    args, kwargs = pytree.tree_map(put, (op.args, op.kwargs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        result = op.function(*args, **kwargs)
    written = args[0] if op.name == "setitem" else list(result) if op.name == "iter" else result
    return [leaf for leaf in pytree.tree_leaves(written) if isinstance(leaf, Tensor)]
