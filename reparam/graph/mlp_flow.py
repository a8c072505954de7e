"""Follows one value through layers that act on channels: what tells an MLP from what only looks like one.

    x -> layer -> ... activation ... -> layer -> y

Every path from x to y must pass the same number of layers, so a gate product of two layers is inside, a residual is
not. Layers are linear layers along the channel axis and 1x1 convolutions; everything else between them is either
tokenwise, or mixes tokens and stays as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reparam.graph.axes import RESHAPES, TRANSPOSES, Axis, axis_sources
from reparam.trace.record import Op, Ref, Trace

ACTIVATIONS = {
    "celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "quick_gelu",
    "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "erf",
}  # fmt: skip
_ELEMENTWISE = ACTIVATIONS | {
    "abs", "add", "addcmul", "clamp", "clamp_max", "clamp_min", "clone", "contiguous", "div", "dropout", "exp", "float",
    "half", "iadd", "idiv", "imul", "isub", "lerp", "maximum", "minimum", "mul", "multiply", "neg", "pow", "radd",
    "rmul", "rpow", "rsqrt", "rsub", "rtruediv", "sqrt", "square", "sub", "to", "truediv", "type", "type_as",
}  # fmt: skip
#: These are tokenwise when they act along the channels, which their shapes show.
_CHANNEL_PIECES = {
    "cat", "chunk", "concat", "getitem", "mean", "narrow", "norm", "split", "sum", "tensor_split", "var", "vector_norm",
}  # fmt: skip
_LAST_AXIS_NORMS = {"layer_norm", "rms_norm"}
_PRODUCTS_OF_TOKENS = {
    "baddbmm", "bmm", "einsum", "matmul", "rmatmul", "multi_head_attention_forward", "scaled_dot_product_attention",
    "softmax",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpFlow:
    """What lies between x and y: weights of the layers in call order, the channel axis of x, how tokens are treated."""

    weights: tuple[Ref, ...]
    channel: int
    mixes_tokens: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """How a value follows from x: its channel axis, the fewest and most layers on the way, what lay between them."""

    channel: int | None
    fewest: int = 0
    most: int = 0
    is_activated: bool = False
    is_closed: bool = False


def read_flow(trace: Trace, ops: Sequence[Op], x: Ref, y: Ref) -> MlpFlow | str:
    """Returns the MLP from x to y, or the first thing that speaks against it, in words.

    Args:
        trace: the record.
        ops: the operations that may belong to it, in order.
        x: (B, N, C), (B, H, W, C) or (B, C, H, W).
        y: what must have come of it.
    """
    tries = [_Walk(trace, x, channel).run(ops, y) for channel in _channel_axes(x, ops)]
    return next((found for found in tries if isinstance(found, MlpFlow)), tries[0])


def _channel_axes(x: Ref, ops: Sequence[Op]) -> list[int]:
    """Where the channels of x may be, likelier first: convolutions want them in front, linear layers at the end."""
    last = len(x.shape) - 1
    if last != 3:
        return [last]
    first = next((op.name for op in ops if op.name in {"linear", "conv2d"}), "linear")
    return [1, last] if first == "conv2d" else [last, 1]


class _Walk:
    """One pass over the operations under one idea of where the channels of x are."""

    def __init__(self, trace: Trace, x: Ref, channel: int) -> None:
        self.trace, self.x, self.channel = trace, x, channel
        self.reached = {x.number: _Reach(channel=channel)}
        self.weights: dict[Ref, str] = {}
        self.mixes_tokens = self.has_spatial_convolution = False

    def run(self, ops: Sequence[Op], y: Ref) -> MlpFlow | str:
        for op in ops:
            fault = self._step(op)
            if fault is not None:
                return fault
        return self._fault_of_whole(y) or MlpFlow(
            weights=tuple(self.weights), channel=self.channel, mixes_tokens=self.mixes_tokens
        )

    def _step(self, op: Op) -> str | None:
        """Follows the value through one operation; returns what no MLP does."""
        operands = [ref for ref in op.inputs if ref.number in self.reached]
        if not operands:
            return None
        if any(self.trace.depends_on_input(ref) for ref in op.inputs if ref not in operands):
            return f"{op.name!r} in it reads a value from outside"
        if op.name in _PRODUCTS_OF_TOKENS:
            return f"{op.name!r} in it mixes tokens by what they hold, as attention does"
        layer = self._weight_of_layer(op, operands[0])
        fault = self._fault_of_convolution(op) if layer is None else self._fault_of_repeat(layer)
        if fault is None:
            before = _join([self.reached[ref.number] for ref in operands])
            self._advance(op, operands, before, layer)
        return fault

    def _advance(self, op: Op, operands: list[Ref], before: _Reach, layer: Ref | None) -> None:
        if layer is not None:
            self.weights[layer] = op.name
            channel = 1 if op.name == "conv2d" else len(op.output.shape) - 1
            is_closed = before.is_closed or before.is_activated
            after = _Reach(channel=channel, fewest=before.fewest + 1, most=before.most + 1, is_closed=is_closed)
        else:
            if not self._is_tokenwise(op, operands):
                self.mixes_tokens = True
            is_activated = before.is_activated or (before.fewest > 0 and op.name in ACTIVATIONS)
            after = replace(before, is_activated=is_activated)
        for out in op.outputs:
            if layer is None:
                after = replace(after, channel=self._channel_after(op, operands, out))
            self.reached[out.number] = after

    def _weight_of_layer(self, op: Op, value: Ref) -> Ref | None:
        """The weight, when the operation is a layer over the channels of every token."""
        weight = op.inputs[1] if len(op.inputs) > 1 else None
        if weight is None or weight.name is None or self._tokens(value) != self._tokens(self.x):
            return None
        channel = self.reached[value.number].channel
        is_linear = op.name == "linear" and channel == len(value.shape) - 1
        if is_linear or (op.name == "conv2d" and channel == 1 and _is_pointwise(op)):
            return weight
        return None

    def _tokens(self, value: Ref) -> int | None:
        channel = self.reached[value.number].channel
        return None if channel is None else math.prod(value.shape) // value.shape[channel]

    def _fault_of_repeat(self, weight: Ref) -> str | None:
        path = str(weight.name).rpartition(".")[0]
        return f'it runs its layer "{path}" twice' if weight in self.weights else None

    def _fault_of_convolution(self, op: Op) -> str | None:
        if op.name not in {"conv1d", "conv2d", "conv3d", "conv_transpose2d"} or _is_of_one_token(op):
            return None
        weight = op.inputs[1].shape
        if weight[1] != 1 or weight[0] != op.inputs[0].shape[1]:
            return f"a convolution with weight {weight} in it mixes channels and places at once"
        self.has_spatial_convolution = True
        return None

    def _is_tokenwise(self, op: Op, operands: list[Ref]) -> bool:
        if op.name in TRANSPOSES or op.name == "permute":
            return True
        if op.name in _LAST_AXIS_NORMS:
            sizes = op.argument(1, "normalized_shape")
            return len(sizes) == 1 and self.reached[operands[0].number].channel == len(operands[0].shape) - 1
        if op.name not in _ELEMENTWISE | _CHANNEL_PIECES:
            return False
        outputs_fit = all(self._differs_in_channels_only(operands[0], out) for out in op.outputs)
        operands_fit = all(self._differs_in_channels_only(operands[0], other) for other in operands[1:])
        return outputs_fit and operands_fit and all(self._is_per_channel(op, ref) for ref in op.inputs)

    def _differs_in_channels_only(self, first: Ref, second: Ref) -> bool:
        channel = self.reached[first.number].channel
        if channel is None or len(first.shape) != len(second.shape):
            return False
        return all(a == b for d, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if d != channel)

    def _is_per_channel(self, op: Op, ref: Ref) -> bool:
        """Whether an operand that is no token (a scale, a bias) is the same for every token."""
        if ref.number in self.reached:
            return True
        channel = next(self.reached[r.number].channel for r in op.inputs if r.number in self.reached)
        behind = len(op.output.shape) - len(ref.shape)
        return all(size == 1 or dim + behind == channel for dim, size in enumerate(ref.shape))

    def _channel_after(self, op: Op, operands: list[Ref], out: Ref) -> int | None:
        for operand in operands:
            channel = self.reached[operand.number].channel
            if channel is None:
                continue
            is_view = op.name in RESHAPES or op.name in TRANSPOSES or op.name == "permute"
            if not is_view and self._differs_in_channels_only(operand, out):
                return channel
            for dim in range(len(out.shape)):
                found = axis_sources(op, Axis(out, dim, 0)) if op.output is out else []
                if any(source.ref.number == operand.number and source.dim == channel for source in found):
                    return dim
        return None

    def _fault_of_whole(self, y: Ref) -> str | None:
        reach = self.reached.get(y.number)
        if reach is None:
            return "its output does not follow from its first tensor"
        if not self.weights:
            return "it has no linear layer or 1x1 convolution over the channels of all its tokens"
        if not reach.fewest:
            return "its input reaches its output beside its layers, as a residual or a gate does"
        if reach.fewest != reach.most:
            return f"some paths through it pass {reach.fewest} of its layers and others {reach.most}"
        if reach.most < 2:
            return "only one layer lies between its input and its output"
        if not reach.is_closed:
            return "no activation stands between its layers"
        if self.has_spatial_convolution and "linear" not in self.weights.values():
            return "it is a convolution block: a spatial convolution stands between its 1x1 convolutions"
        return self._fault_of_shape(y, reach)

    def _fault_of_shape(self, y: Ref, reach: _Reach) -> str | None:
        if reach.channel is None or self._tokens(y) != self._tokens(self.x):
            return f"it does not keep its tokens: {self.x.shape} becomes {y.shape}"
        if reach.channel != self.channel or not self._differs_in_channels_only(self.x, y):
            self.mixes_tokens = True
        return None


def _join(reaches: list[_Reach]) -> _Reach:
    return _Reach(
        channel=reaches[0].channel,
        fewest=min(reach.fewest for reach in reaches),
        most=max(reach.most for reach in reaches),
        is_activated=any(reach.is_activated for reach in reaches),
        is_closed=any(reach.is_closed for reach in reaches),
    )


def _is_pointwise(op: Op) -> bool:
    weight = op.inputs[1].shape
    return weight[2:] == (1, 1) and weight[1] == op.inputs[0].shape[1] and op.output.shape[2:] == op.inputs[0].shape[2:]


def _is_of_one_token(op: Op) -> bool:
    """A gate computed from the mean of the image (squeeze and excite) is no layer over tokens."""
    return math.prod(op.inputs[0].shape[2:]) == 1
