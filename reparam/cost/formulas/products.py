"""Products and sums of products: layers, convolutions, matrix products in every spelling, attention in one function."""

import math

from reparam.cost.formulas.form import Formula, first, floats, per_output
from reparam.cost.formulas.reductions import softmax_of
from reparam.counts import OpCount
from reparam.trace.products import Product, read_product
from reparam.trace.record import Op, Ref


def _linear(op: Op) -> OpCount:
    return _product(op.output.size, depth=first(op).shape[-1], has_bias=len(op.inputs) > 2)


def _convolution(op: Op) -> OpCount:
    return _product(op.output.size, depth=math.prod(op.inputs[1].shape[1:]), has_bias=len(op.inputs) > 2)


def _transposed_convolution(op: Op) -> OpCount:
    """Each input is multiplied by the weights (I, O / groups, ...) that read it, also where the result is cut off."""
    count = OpCount.multiply_accumulate(first(op).size * math.prod(op.inputs[1].shape[1:]))
    return count + floats(op.output.size if len(op.inputs) > 2 else 0, add=1)


def _matrix_product(op: Op) -> OpCount | None:
    product = read_product(op)
    if product is None:
        return _vector_product(op)
    added = op.output.size if product.addend is not None else 0
    return OpCount.multiply_accumulate(_positions(product)) + floats(added, add=1)


def _vector_product(op: Op) -> OpCount | None:
    """A product with a vector: one multiply-accumulate for each element of the larger operand."""
    if len(op.inputs) != 2 or min(len(ref.shape) for ref in op.inputs) != 1 or op.name == "einsum":
        return None
    return OpCount.multiply_accumulate(max(ref.size for ref in op.inputs))


def _addmm(op: Op) -> OpCount | None:
    if len(op.inputs) != 3:
        return None
    _, left, _ = op.inputs
    return _product(op.output.size, depth=left.shape[-1], has_bias=True)


def _positions(product: Product) -> int:
    """How many pairs of elements a product multiplies: one for each index that its labels can take together."""
    sides = ((product.left, product.left_axes), (product.right, product.right_axes))
    sizes: dict[str, int] = {}
    for operand, labels in sides:
        for label, size in zip(labels, operand.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _fused_attention(op: Op) -> OpCount:
    q, k, v = (ref.shape for ref in op.inputs[:3])
    scores = math.prod(q[:-1]) * k[-2]
    has_mask = isinstance(op.argument(3, "attn_mask"), Ref)
    return _attention(scores, width=q[-1], value_width=v[-1]) + floats(scores if has_mask else 0, add=1)


def _attention(scores: int, *, width: int, value_width: int) -> OpCount:
    """q k', its scale, the softmax, and the product with v, of so many scores."""
    products = OpCount.multiply_accumulate(scores * (width + value_width))
    return products + floats(scores, mul=1) + softmax_of(scores)


def _multi_head_attention(op: Op) -> OpCount:
    """Four projections and the attention of all heads, as `nn.MultiheadAttention` computes them in one function."""
    query, key, value = (ref.shape for ref in op.args[:3])  # (N, B, E), and (M, B, .) for keys and values
    width, heads, rows, others = query[-1], op.args[4], math.prod(query[:-1]), math.prod(key[:-1])
    has_bias = op.args[6] is not None
    total = _attention(rows * key[0] * heads, width=width // heads, value_width=width // heads)
    for depth, tokens in ((width, rows), (key[-1], others), (value[-1], others), (width, rows)):
        total += _product(tokens * width, depth=depth, has_bias=has_bias)
    return total


def _lstm(op: Op) -> OpCount | None:
    """For each token and direction: matrices and biases, three sigmoids, two tanhs, c = f * c + i * g, h = o * y."""
    parameters = [ref for ref in op.argument(2, "params", ()) if isinstance(ref, Ref)]
    matrices = [ref for ref in parameters if len(ref.shape) == 2]
    if not matrices:
        return None
    tokens = first(op).size // first(op).shape[-1]
    biases = sum(ref.size for ref in parameters if len(ref.shape) == 1)
    states = sum(ref.shape[0] for ref in matrices) // 8  # two matrices, four gates each
    gates = floats(states, mul=5, add=8, exp=5, div=5)
    one = OpCount.multiply_accumulate(sum(ref.size for ref in matrices)) + floats(biases, add=1) + gates
    return tokens * one


def _product(outputs: int, *, depth: int, has_bias: bool) -> OpCount:
    return OpCount.multiply_accumulate(outputs * depth) + floats(outputs if has_bias else 0, add=1)


PRODUCTS: dict[str, Formula] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "mm", "mv", "dot", "baddbmm", "einsum"), _matrix_product),
    "addmm": _addmm,
    **dict.fromkeys(("outer", "ger"), per_output(mul=1)),
    "lstm": _lstm,
    "scaled_dot_product_attention": _fused_attention,
    "multi_head_attention_forward": _multi_head_attention,
}
