"""A recorded run as layers of the Eyeriss-like array: each product of matrices with its arithmetic and its sizes.

As ShiftAddViT's cal_energy.py does it, a product of two activations is a layer whose second operand is the weight, for
all heads and rows together. Repaired: every product is priced by its own sizes (released: every addition as the first
of the network), softmax attention's products are not forgotten, and a mixture's experts get the tokens they get.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import nn

from reparam.cost.energy import Energy
from reparam.cost.eyeriss import Arithmetic, ArrayLayer, Bits, array_cost
from reparam.cost.walk import OperatorRan, images_in, walk
from reparam.ops.adder_conv2d import AdderConv2d
from reparam.ops.adder_linear import AdderLinear
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.channel_layer import widths
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_adder_conv2d import ShiftAdderConv2d
from reparam.ops.shift_conv2d import ShiftConv2d
from reparam.trace.products import Product, read_product
from reparam.trace.record import Op, Trace

#: How options and profiles call this accounting.
EYERISS = "shiftaddvit-eyeriss"
Layers = Iterator[tuple[ArrayLayer, int]]


def price_on_array(model: nn.Module, trace: Trace, *, mult_share: Mapping[str, float], bits: Bits = 32) -> Energy:
    """Returns the energy of one image by ShiftAddViT's accounting; `by_operation` splits it by arithmetic.

    Args:
        model: whose run it is.
        trace: the run.
        mult_share: the measured share of tokens for the multiply expert, by path of the router.
        bits: 32, or 8 for the same layers in int8.
    """
    picojoules, unpriced = Counter[str](), Counter[str]()
    for layer, times in array_layers(model, trace, mult_share=mult_share):
        cost = array_cost(layer, bits=bits)
        if cost is None:
            unpriced[f"{layer.arithmetic}.f32"] += layer.products * times
        else:
            picojoules[layer.arithmetic] += cost.picojoules * times  # type: ignore[assignment]  # a Counter of floats
    name = EYERISS if bits == 32 else f"{EYERISS}, {bits} bits"
    by_operation = {arithmetic: float(pj) for arithmetic, pj in picojoules.items()}
    return Energy(table=name, picojoules=sum(by_operation.values()), by_operation=by_operation, unpriced=dict(unpriced))


def array_layers(model: nn.Module, trace: Trace, *, mult_share: Mapping[str, float]) -> Layers:
    """Yields each layer of one image, and how often it runs."""
    images = images_in(trace)
    for ran in walk(model, trace):
        if not isinstance(ran, OperatorRan):
            yield from _of_function(ran.op, images)
            continue
        operator, shape = ran.operator, ran.inputs[0].shape
        if isinstance(operator, MoeMlp | RoutedLayer):
            yield from _of_experts(operator, shape, images, share=mult_share.get(f"{ran.path}.router"))
        elif isinstance(operator, BinaryLinearAttention):
            yield from _of_attention(operator, [ref.shape for ref in ran.inputs], images)
        elif isinstance(operator, ShiftLinear | AdderLinear):
            rows = math.prod(shape[:-1]) // images
            yield _matrix(_arithmetic(operator), rows, operator.in_features, operator.out_features), 1
        elif isinstance(operator, ShiftConv2d | AdderConv2d):
            yield _of_form(operator, shape, ran.outputs[0].shape)
        elif isinstance(operator, ShiftAdderConv2d):
            between = (*ran.outputs[0].shape[:1], operator.shift.out_channels, *ran.outputs[0].shape[2:])
            yield _of_form(operator.shift, shape, between)
            yield _of_form(operator.adder, between, ran.outputs[0].shape)


def _of_function(op: Op, images: int) -> Layers:
    product = read_product(op)
    if op.name == "linear":
        rows = math.prod(op.output.shape[:-1]) // images
        yield _matrix("mul", rows, op.inputs[0].shape[-1], op.output.shape[-1]), 1
    elif op.name == "conv2d":
        kernel, stride = op.inputs[1].shape[2:], op.argument(3, "stride", 1)
        step = stride if isinstance(stride, int) else stride[0]
        groups = op.argument(6, "groups", 1)
        yield _convolution("mul", op.inputs[0].shape, op.output.shape, kernel=kernel, groups=groups, stride=step)
    elif op.name == "scaled_dot_product_attention":
        yield from _softmax_products([ref.shape for ref in op.inputs[:3]], images)
    elif product is not None:
        yield _of_product(product, images), 1


def _of_product(product: Product, images: int) -> ArrayLayer:
    """The summed axes are the inputs, those of the right operand alone the outputs, all others the rows."""
    left, right = (
        dict(zip(axes, ref.shape, strict=True))
        for axes, ref in ((product.left_axes, product.left), (product.right_axes, product.right))
    )
    sizes = {label: max(left.get(label, 1), right.get(label, 1)) for label in left | right}
    summed = [label for label in sizes if label not in product.out_axes]
    columns = [label for label in product.out_axes if label not in left]
    inputs, outputs = (math.prod(sizes[label] for label in labels) for labels in (summed, columns))
    return _matrix("mul", math.prod(sizes.values()) // (inputs * outputs * images), inputs, outputs)


def _softmax_products(shapes: list[tuple[int, ...]], images: int) -> Layers:
    q, k, v = shapes
    rows = math.prod(q[:-1]) // images
    yield _matrix("mul", rows, q[-1], k[-2]), 1
    yield _matrix("mul", rows, k[-2], v[-1]), 1


def _of_attention(operator: BinaryLinearAttention, shapes: list[tuple[int, ...]], images: int) -> Layers:
    """k' v, q (k' v), and the depthwise convolution."""
    q, k, v = shapes
    arithmetic: Arithmetic = "mul" if operator.options.codes == "real" else "add"
    yield _matrix(arithmetic, math.prod(k[:-2]) * k[-1] // images, k[-2], v[-1]), 1
    yield _matrix(arithmetic, math.prod(q[:-1]) // images, q[-1], v[-1]), 1
    grid = operator.form.grid
    if operator.token_conv is not None and grid is not None:
        side, channels = operator.options.conv_kernel, math.prod(v[1:2]) * v[-1]
        plane = (grid.height, grid.width)
        windows = v[0] // images
        layer = ArrayLayer(
            arithmetic="mul", rows=windows, inputs=1, outputs=1, kernel=(side, side), plane=plane, out_plane=plane,
            is_convolution=True,
        )  # fmt: skip
        yield layer, channels


def _of_experts(operator: MoeMlp | RoutedLayer, shape: tuple[int, ...], images: int, *, share: float | None) -> Layers:
    pairs = operator.expert_layers()
    tokens = math.prod(shape) // widths(pairs[0][0])[0] // images
    multiplied = round(tokens * (operator.options.balanced_share if share is None else share))
    for dense, _ in pairs:
        inputs, outputs = widths(dense)
        for arithmetic, rows in (("mul", multiplied), ("shift", tokens - multiplied)):
            if rows:
                yield _matrix(arithmetic, rows, inputs, outputs), 1  # type: ignore[arg-type]


def _arithmetic(operator: object) -> Arithmetic:
    return "shift" if isinstance(operator, ShiftLinear | ShiftConv2d) else "add"


def _of_form(
    operator: ShiftConv2d | AdderConv2d, shape: tuple[int, ...], out: tuple[int, ...]
) -> tuple[ArrayLayer, int]:
    kernel, groups, stride = operator.form.kernel, operator.form.groups, operator.form.stride[0]
    return _convolution(_arithmetic(operator), shape, out, kernel=kernel, groups=groups, stride=stride)


def _matrix(arithmetic: Arithmetic, rows: int, inputs: int, outputs: int) -> ArrayLayer:
    return ArrayLayer(arithmetic=arithmetic, rows=rows, inputs=inputs, outputs=outputs)


def _convolution(
    arithmetic: Arithmetic,
    shape: tuple[int, ...],
    out: tuple[int, ...],
    *,
    kernel: tuple[int, ...],
    groups: int,
    stride: int,
) -> tuple[ArrayLayer, int]:
    """One image of a group of channels, and how many groups there are."""
    layer = ArrayLayer(
        arithmetic=arithmetic,
        rows=1,
        inputs=shape[1] // groups,
        outputs=out[1] // groups,
        kernel=(kernel[0], kernel[1]),
        plane=(shape[2], shape[3]),
        out_plane=(out[2], out[3]),
        stride=stride,
        is_convolution=True,
    )
    return layer, groups
