"""Judges what stands between two values: whether it is an MLP over tokens, and of which form."""

import math
from collections.abc import Sequence

from torch import nn

from reparam.graph.axis_origin import axis_origins
from reparam.graph.finders.base import Scene
from reparam.graph.mlp_flow import MlpFlow, read_flow
from reparam.ops.site import MlpForm
from reparam.trace.record import Op, Ref, Trace

_TOKEN_RANKS = (3, 4)
_WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d", "matmul", "bmm", "einsum", "scaled_dot_product_attention"}


def judge_mlp(scene: Scene, path: str, ops: Sequence[Op], x: Ref, y: Ref) -> MlpForm | str:
    """Returns the form of the MLP from x to y, with layers relative to the module at `path`, or what speaks against it.

    Args:
        scene: the model and its run.
        path: the module whose forward, or part of whose forward, it is.
        ops: the operations between x and y, in order.
        x: what it reads.
        y: what it gives.
    """
    if not scene.trace.depends_on_input(x):
        return "its input does not depend on the model's input: it turns positions into a table"
    if len(x.shape) not in _TOKEN_RANKS:
        return f"its input has shape {x.shape}, which is no map of tokens"
    converted = next((part for op in ops for part in op.stack if part not in scene.modules), None)
    if converted is not None:
        return f'its part "{converted}" is converted already'
    flow = read_flow(scene.trace, ops, x, y)
    if isinstance(flow, str):
        return flow
    faults = (_fault_of_layer(scene, path, weight, ops, is_called=flow.mixes_tokens) for weight in flow.weights)
    fault = _fault_of_place(scene.trace, x, y, flow) or next((fault for fault in faults if fault), None)
    return fault or _form(path, x, flow)


def _form(path: str, x: Ref, flow: MlpFlow) -> MlpForm:
    prefix = f"{path}." if path else ""
    return MlpForm(
        linears=tuple(_layer(weight).removeprefix(prefix) for weight in flow.weights),
        mixes_tokens=flow.mixes_tokens,
        layout="channels_last" if flow.channel == len(x.shape) - 1 else "channels_first",
    )


def _fault_of_place(trace: Trace, x: Ref, y: Ref, flow: MlpFlow) -> str | None:
    if math.prod(x.shape) == x.shape[0] * x.shape[flow.channel]:
        return "it sees one token for each image, so there is nothing to route"
    has_plane = any(len(ref.shape) == 4 for ref in trace.inputs)
    if has_plane and {origin.kind for origin in axis_origins(trace, x, flow.channel)} == {"tokens"}:
        return "it acts along the tokens, not along the channels: it mixes them, as in MLP-Mixer"
    if math.prod(y.shape) != math.prod(x.shape) and not _feeds_weights(trace, y):
        return "it ends the model and changes the width: it is a head"
    return None


def _feeds_weights(trace: Trace, value: Ref) -> bool:
    """Whether anything with weights, or a product of values, reads what comes of `value`."""
    queue, seen = [value], {value.number}
    for ref in queue:
        for op in trace.users(ref):
            if op.name in _WEIGHTED:
                return True
            queue.extend(out for out in op.outputs if out.number not in seen)
            seen.update(out.number for out in op.outputs)
    return False


def _layer(weight: Ref) -> str:
    return str(weight.name).rpartition(".")[0]


def _fault_of_layer(scene: Scene, path: str, weight: Ref, ops: Sequence[Op], *, is_called: bool) -> str | None:
    """What keeps a layer from being swapped; `is_called` asks that its own forward runs it."""
    layer = _layer(weight)
    if not isinstance(scene.modules.get(layer), nn.Linear | nn.Conv2d):
        return f'the weight in "{layer}" belongs to no linear layer and no convolution'
    if path and not layer.startswith(f"{path}."):
        return f'its layer "{layer}" is registered outside it'
    readers = scene.trace.users(weight)
    if is_called and any(layer not in op.stack for op in readers):
        return f'the weight of its layer "{layer}" is read without calling the layer'
    # Another call of the same forward reads it too.
    places = {op.stack for op in ops}
    outside = next((op for op in readers if op.stack not in places), None)
    return f'the weight of its layer "{layer}" is read outside it too, by {outside.name!r}' if outside else None
