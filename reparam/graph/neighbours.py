"""What stands around a layer in the dataflow: whether it is the first or the last one, and what reads its output."""

from reparam.graph.axes import RESHAPES, TRANSPOSES
from reparam.trace.products import read_product
from reparam.trace.record import Op, Ref, Trace

_LAYERS = {
    "addmm", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "embedding", "linear", "multi_head_attention_forward", "scaled_dot_product_attention", "tensordot",
}  # fmt: skip
_NORMS = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
_PASSES_ON = RESHAPES | TRANSPOSES | {"permute", "movedim", "contiguous", "to", "float", "clone"}


def reads_no_layer(trace: Trace, ref: Ref) -> bool:
    """Whether a value comes from the model's input without another layer or product on the way."""
    if not trace.depends_on_input(ref):
        return False
    return ref.number not in _behind_layers(trace)


def feeds_no_layer(trace: Trace, ref: Ref) -> bool:
    """Whether no other layer or product reads a value or what is made of it."""
    return ref.number not in _before_layers(trace)


def is_normalised(trace: Trace, ref: Ref) -> bool:
    """Whether a normalisation reads a value, or what a mere change of layout makes of it, and nothing else does."""
    readers = trace.users(ref)
    if not readers or ref in trace.outputs:
        return False
    return all(
        op.name in _NORMS or (op.name in _PASSES_ON and all(is_normalised(trace, out) for out in op.outputs))
        for op in readers
    )


def _behind_layers(trace: Trace) -> set[int]:
    """Numbers of the values that some layer's output went into."""
    if _behind_layers not in trace.memo:
        found: set[int] = set()
        for op in trace.ops:
            if _is_layer(op) or any(ref.number in found for ref in op.inputs):
                found.update(ref.number for ref in op.outputs)
        trace.memo[_behind_layers] = found
    numbers: set[int] = trace.memo[_behind_layers]
    return numbers


def _before_layers(trace: Trace) -> set[int]:
    """Numbers of the values that go into some layer."""
    if _before_layers not in trace.memo:
        found: set[int] = set()
        for op in reversed(trace.ops):
            if _is_layer(op) or any(ref.number in found for ref in op.outputs):
                found.update(ref.number for ref in op.inputs)
        trace.memo[_before_layers] = found
    numbers: set[int] = trace.memo[_before_layers]
    return numbers


def _is_layer(op: Op) -> bool:
    return op.name in _LAYERS or read_product(op) is not None
