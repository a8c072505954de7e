"""Which tokens of a value the model's output reads: walks forward through the record along the token axis.

The last block of a class-token model computes patch tokens that nothing reads. What an operator would add to them alone
could never learn.
"""

from reparam.graph.axes import Axis, axis_sources
from reparam.trace.record import Op, Ref, Trace

#: Operations that treat tokens one by one, or only view them.
_TOKENWISE = {
    "add", "clone", "contiguous", "div", "dropout", "expand", "flatten", "float", "gelu", "getitem", "layer_norm",
    "linear", "mul", "neg", "permute", "radd", "relu", "reshape", "rms_norm", "rmul", "rsub", "select", "sigmoid",
    "silu", "sub", "swapaxes", "tanh", "to", "transpose", "truediv", "type_as", "unflatten", "unsqueeze", "view",
}  # fmt: skip


def reads_only_prefix(trace: Trace, tokens: Ref, *, dim: int, prefix: int) -> bool:
    """Whether the model's output depends on axis `dim` of a value through its first `prefix` tokens alone.

    False when in doubt: any operation that might mix tokens counts as reading all of them.
    """
    if not prefix:
        return False
    outputs = {ref.number for ref in trace.outputs}
    queue = [Axis(tokens, dim % len(tokens.shape), 0)]
    seen: set[tuple[int, int]] = set()
    for axis in queue:
        if (axis.ref.number, axis.dim) in seen:
            continue
        seen.add((axis.ref.number, axis.dim))
        if axis.ref.number in outputs:
            return False
        for op in trace.users(axis.ref):
            if _takes_prefix(op, axis, prefix):
                continue
            onward = _onward(op, axis)
            if not onward:
                return False
            queue.extend(onward)
    return True


def _takes_prefix(op: Op, axis: Axis, prefix: int) -> bool:
    """Whether the operation picks tokens of the prefix and nothing else."""
    if op.name == "select" and int(op.argument(1, "dim")) % len(axis.ref.shape) == axis.dim:
        return 0 <= int(op.argument(2, "index")) < prefix
    if op.name != "getitem":
        return False
    index = op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
    if Ellipsis in index or None in index or len(index) <= axis.dim:
        return False
    part = index[axis.dim]
    if isinstance(part, slice):
        start, stop, _ = part.indices(axis.size)
        return start < stop <= prefix
    return type(part) is int and 0 <= part < prefix


def _onward(op: Op, axis: Axis) -> list[Axis]:
    """The axes of the result that the axis became; none when the operation may mix tokens."""
    if op.name not in _TOKENWISE:
        return []
    out = op.output
    candidates = [Axis(out, dim, 0) for dim in range(len(out.shape)) if out.shape[dim] == axis.size]
    return [
        found
        for found in candidates
        if any(source.ref.number == axis.ref.number and source.dim == axis.dim for source in axis_sources(op, found))
    ]
