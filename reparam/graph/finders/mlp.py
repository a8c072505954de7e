"""Finds token MLPs by dataflow: modules whose input goes straight through linear, activation, ..., linear."""

from collections.abc import Iterator

from torch import nn

from reparam.graph.finders.base import Scene, finder, qualified_type
from reparam.ops.site import MlpForm, Site
from reparam.trace.record import ModuleCall, Op

_ACTIVATIONS = {
    "celu", "elu", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "mish", "prelu", "quick_gelu", "relu", "relu6",
    "selu", "sigmoid", "silu", "softplus", "tanh",
}  # fmt: skip
_NEUTRAL = {"dropout", "contiguous"}
_TOKEN_RANK = 3


@finder("mlp")
def find_mlp(scene: Scene) -> Iterator[Site]:
    """Yields the smallest modules that are MLPs over tokens; classifier heads and position MLPs are not."""
    found: set[str] = set()
    for call in scene.trace.calls:
        if call.path in found or call.path not in scene.modules:
            continue
        form = _straight_chain(scene, call)
        if form is not None:
            found.add(call.path)
            yield _site(scene, call, form)


def _straight_chain(scene: Scene, call: ModuleCall) -> MlpForm | None:
    """The children in call order, when each one feeds the next and nothing else happens in between."""
    if len(call.args) != 1 or call.kwargs or len(call.inputs) != 1 or len(call.outputs) != 1:
        return None
    if len(call.inputs[0].shape) < _TOKEN_RANK:
        return None
    children = dict(scene.modules[call.path].named_children())
    prefix = f"{call.path}." if call.path else ""
    inner = [c for c in scene.trace.calls if c.path.startswith(prefix) and c.path.removeprefix(prefix) in children]
    steps = [c for c in inner if call.first_op <= c.first_op and c.end_op <= call.end_op]
    value = call.inputs[0].number
    for step in steps:
        if len(step.inputs) != 1 or step.inputs[0].number != value or len(step.outputs) != 1:
            return None
        value = step.outputs[0].number
    if not steps or value != call.outputs[0].number:
        return None
    return _form(scene, call, steps, [children[step.path.removeprefix(prefix)] for step in steps], prefix)


def _form(
    scene: Scene, call: ModuleCall, steps: list[ModuleCall], modules: list[nn.Module], prefix: str
) -> MlpForm | None:
    ops = scene.trace.ops[call.first_op : call.end_op]
    if [op.name for op in ops if op.name not in _ACTIVATIONS | _NEUTRAL] != ["linear", "linear"]:
        return None
    if not _is_activated_between(ops) or not scene.trace.depends_on_input(call.inputs[0]):
        return None
    names = [step.path.removeprefix(prefix) for step in steps]
    linears = tuple(n for n, module in zip(names, modules, strict=True) if isinstance(module, nn.Linear))
    return MlpForm(chain=tuple(names), linears=linears) if len(linears) == 2 else None


def _is_activated_between(ops: list[Op]) -> bool:
    names = [op.name for op in ops]
    first, last = names.index("linear"), len(names) - 1 - names[::-1].index("linear")
    return any(name in _ACTIVATIONS for name in names[first:last])


def _site(scene: Scene, call: ModuleCall, form: MlpForm) -> Site:
    return Site(
        path=call.path,
        kind="mlp",
        type=qualified_type(scene.modules[call.path]),
        input_shape=call.inputs[0].shape,
        output_shape=call.outputs[0].shape,
        calls=len(scene.trace.calls_of(call.path)),
        shared_with=scene.shared_with(call.path),
        mlp=form,
    )
