"""Counts the operations of one run: products by formula, operators by their declaration, the rest listed as uncounted.

One multiply-accumulate is one multiplication and one addition. Counts are per image: those of the run divided by its
batch size.
"""

import math
from collections import Counter
from collections.abc import Mapping

from torch import nn

from reparam.counts import OpCount
from reparam.ops.base import Operator
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.trace.products import Product, read_product
from reparam.trace.record import ModuleCall, Op, Trace

#: Operations that move or view data, or create it; they compute nothing.
_FREE = {
    "alias", "as_strided", "broadcast_to", "cat", "chunk", "clone", "concat", "contiguous", "data", "detach", "dropout",
    "empty", "expand", "expand_as", "flatten", "flip", "full", "getitem", "index_select", "meshgrid", "mT", "movedim",
    "narrow", "new_full", "new_ones", "new_zeros", "ones", "pad", "permute", "repeat", "reshape", "roll", "select",
    "split", "squeeze", "stack", "swapaxes", "swapdims", "T", "t", "tile", "to", "transpose", "type_as", "unbind",
    "unflatten", "unfold", "unsqueeze", "view", "view_as", "zeros", "zeros_like", "ones_like", "float", "setitem",
    "requires_grad",
}  # fmt: skip
_ADDS = {"add", "radd", "iadd", "sub", "rsub", "isub"}
_MULS = {"mul", "rmul", "imul", "multiply"}
#: What says itself which operations its code runs.
_Declaring = Operator | RoutedLayer


def count_operations(
    model: nn.Module, trace: Trace, *, mult_share: Mapping[str, float] | None = None
) -> tuple[OpCount, Counter[str]]:
    """Returns the operations of the whole recorded run, and how often each uncounted torch function ran.

    `mult_share` maps the path of a router to the measured share of tokens that take the multiply expert; a mixture that
    is not in it is counted at its balanced load.

    An operator declares what its own code does; the dense modules it carries along (the activation in an expert) are
    not its code, so their functions without a formula are listed like all others.
    """
    modules = dict(model.named_modules())
    operators = {path: m for path, m in modules.items() if isinstance(m, _Declaring) and not _is_transparent(m)}
    total, uncounted = OpCount(), Counter[str]()
    for call in trace.calls:
        if call.path in operators and not _is_inside(call.path, operators):
            total += _declared(operators[call.path], call, mult_share or {})
    readers, hidden = _weight_readers(trace, operators)
    for op in trace.ops:
        owner = next((operators[path] for path in op.stack if path in operators), None)
        if op.index in hidden or (owner is not None and _package(modules[op.stack[-1]]) == _package(owner)):
            continue
        reader = readers.get(op.index)
        counted = count_op(op) if reader is None else reader.op_count(op.inputs[0].shape)
        if counted is None and op.name not in _FREE:
            uncounted[op.name] += 1
        elif counted is not None and owner is None:
            total += counted
    return total, uncounted


def _is_transparent(module: nn.Module) -> bool:
    """An MLP whose layers are routed one by one: they declare themselves, and what is between them is dense."""
    return isinstance(module, MoeMlp) and module.form.mixes_tokens


def _declared(operator: _Declaring, call: ModuleCall, mult_share: Mapping[str, float]) -> OpCount:
    shapes = [ref.shape for ref in call.inputs]
    if isinstance(operator, MoeMlp | RoutedLayer):
        return operator.op_count(shapes[0], mult_share=mult_share.get(f"{call.path}.router"))
    return operator.op_count(*shapes)


def _weight_readers(trace: Trace, operators: dict[str, _Declaring]) -> tuple[dict[int, _Declaring], set[int]]:
    """Products outside an operator that read its weight, by index, and the operations that made the weight.

    Models such as EVA call `F.linear(x, self.qkv.weight)`: the operator's module never runs, its weight does.
    """
    readers: dict[int, _Declaring] = {}
    hidden: set[int] = set()
    for op in trace.ops:
        is_outside = not any(path in operators for path in op.stack)
        if op.name == "linear" and is_outside and not trace.depends_on_input(op.inputs[1]):
            made = list(trace.ancestors(op.inputs[1]))
            read = [op.inputs[1], *(ref for step in made for ref in step.inputs)]
            owners = {ref.name.rpartition(".")[0] for ref in read if ref.name} & operators.keys()
            if len(owners) == 1:
                readers[op.index] = operators[owners.pop()]
                hidden.update(step.index for step in made)
    return readers, hidden


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _is_inside(path: str, operators: dict[str, _Declaring]) -> bool:
    return any(path.startswith(f"{owner}.") for owner in operators)


def count_op(op: Op) -> OpCount | None:
    """Returns the operations of one torch function, None when it has no formula here."""
    outputs = math.prod(op.output.shape)
    if op.name == "linear":
        return _product(outputs, depth=op.inputs[0].shape[-1], has_bias=len(op.inputs) > 2)
    if op.name == "conv2d":
        return _product(outputs, depth=math.prod(op.inputs[1].shape[1:]), has_bias=len(op.inputs) > 2)
    product = read_product(op)
    if product is not None:
        added = OpCount({("add", "f32"): outputs if product.addend is not None else 0})
        return OpCount.multiply_accumulate(_positions(product)) + added
    if op.name == "multi_head_attention_forward":
        return _multi_head_attention(op)
    if op.name == "scaled_dot_product_attention":
        q, k, v = (ref.shape for ref in op.inputs[:3])
        return OpCount.multiply_accumulate(math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1]))
    if op.name in _ADDS:
        return OpCount({("add", "f32"): outputs})
    if op.name in _MULS:
        return OpCount({("mul", "f32"): outputs})
    return None


def _positions(product: Product) -> int:
    """How many pairs of elements a product multiplies: one for each index that its labels can take together."""
    sides = ((product.left, product.left_axes), (product.right, product.right_axes))
    sizes: dict[str, int] = {}
    for operand, labels in sides:
        for label, size in zip(labels, operand.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _multi_head_attention(op: Op) -> OpCount:
    """Four projections and two products over the tokens, as `nn.MultiheadAttention` computes them in one function."""
    query, key, value = (ref.shape for ref in op.args[:3])  # (N, B, E), and (M, B, .) for keys and values
    width, rows, others = query[-1], math.prod(query[:-1]), math.prod(key[:-1])
    has_bias = op.args[6] is not None
    total = OpCount.multiply_accumulate(2 * rows * key[0] * width)
    for depth, tokens in ((width, rows), (key[-1], others), (value[-1], others), (width, rows)):
        total += _product(tokens * width, depth=depth, has_bias=has_bias)
    return total


def _product(outputs: int, *, depth: int, has_bias: bool) -> OpCount:
    bias = OpCount({("add", "f32"): outputs if has_bias else 0})
    return OpCount.multiply_accumulate(outputs * depth) + bias


def per_image(counts: OpCount, batch: int) -> dict[str, int]:
    """Divides a run's counts by its batch size, as `{"mul.f32": n, ...}`."""
    return {key: round(n / batch) for key, n in counts.as_dict().items()}
