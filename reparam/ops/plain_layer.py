"""Whether a layer's forward is one operation on its own weight and bias, so that nothing is lost with it."""

import torch
from torch import nn

from reparam.errors import ModelError
from reparam.trace.probe import probe


def is_plain(layer: nn.Module, operation: str, input_shape: tuple[int, ...]) -> bool:
    """Whether `layer` is `operation(input, weight, bias)` and nothing else, in eval and in training.

    Decided by what its forward does, so a subclass passes that only adds a constructor or rewrites the same forward.

    Args:
        layer: a module with `weight` and `bias`; its values are not read.
        operation: name of the torch function, such as "linear".
        input_shape: a shape that its forward takes.
    """
    return all(_runs_only(layer, operation, input_shape, training=training) for training in (False, True))


def _runs_only(layer: nn.Module, operation: str, input_shape: tuple[int, ...], *, training: bool) -> bool:
    try:
        trace = probe(layer, torch.empty(input_shape, device="meta"), training=training)
    except ModelError:  # it wants more than one tensor, so it is more than the operation
        return False
    if [op.name for op in trace.ops] != [operation] or trace.outputs != trace.ops[0].outputs:
        return False
    read = [trace.ops[0].argument(at, name) for at, name in enumerate(("input", "weight", "bias"))]
    names = [getattr(ref, "name", None) for ref in read]
    return read[0] == trace.inputs[0] and names == [None, "weight", "bias" if layer.bias is not None else None]
