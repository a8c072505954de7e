"""Finds token MLPs by dataflow: modules that are one, and lines of a forward that are one without a module around."""

from collections.abc import Iterator, Sequence

from torch import nn

from reparam.graph.finders.base import Scene, finder, qualified_type
from reparam.graph.finders.mlp_form import judge_mlp
from reparam.graph.inline import layers_of
from reparam.graph.mlp_flow import ACTIVATIONS
from reparam.graph.mlp_regions import Region, find_regions, steps_of_call
from reparam.ops.site import MlpForm, Site
from reparam.trace.record import ModuleCall, Op, Ref

_NEUTRAL = {"dropout", "contiguous"}


@finder("mlp")
def find_mlp(scene: Scene) -> Iterator[Site]:
    """Yields the smallest modules that are MLPs over tokens, and MLPs inline in a forward.

    Classifier heads, gates, position MLPs, MLPs along the tokens and convolution blocks are none.
    """
    modules = _find_modules(scene)
    for path, form in modules.items():
        call = scene.trace.calls_of(path)[0]
        yield _site(scene, path, call.inputs[0], call.outputs[0], form)
    for path in _called(scene):
        if not any(path == mlp or path.startswith(f"{mlp}.") for mlp in modules):
            yield from _find_inline(scene, path)


def why_no_mlp(scene: Scene, path: str) -> str | None:
    """Returns the first test that the module at `path` fails to be or hold an MLP, in words; None when it does."""
    if path not in scene.modules:
        return "it is converted already, or a part of what is"
    modules = _find_modules(scene)
    if path in modules or any(_find_inline(scene, path)):
        return None
    verdict = _judge(scene, path, modules)
    return verdict if isinstance(verdict, str) else None


def _called(scene: Scene) -> list[str]:
    """Paths that a call was recorded of; calls are recorded as they end, so a part comes before its whole."""
    return [path for path in dict.fromkeys(call.path for call in scene.trace.calls) if path in scene.modules]


def _find_modules(scene: Scene) -> dict[str, MlpForm]:
    found: dict[str, MlpForm] = {}
    for path in _called(scene):
        form = _judge(scene, path, found)
        if isinstance(form, MlpForm):
            found[path] = form
    return found


def _judge(scene: Scene, path: str, found: dict[str, MlpForm]) -> MlpForm | str:
    """The form of the MLP at `path`, the same in all its calls, or what speaks against it."""
    part = next((p for p in found if p.startswith(f"{path}.") or not path), None)
    if part is not None:
        return f'its part "{part}" is the MLP'
    return _agreed([_form(scene, call) for call in scene.trace.calls_of(path)])


def _agreed(forms: Sequence[MlpForm | str]) -> MlpForm | str:
    fault = next((form for form in forms if isinstance(form, str)), None)
    if fault is not None:
        return fault
    if not forms:
        return "it took no part in the run"
    return forms[0] if len(set(forms)) == 1 else "its calls differ"


def _form(scene: Scene, call: ModuleCall) -> MlpForm | str:
    if not call.inputs or len(call.outputs) != 1:
        return f"it maps {len(call.inputs)} tensors to {len(call.outputs)}; wanted one output"
    ops = scene.trace.ops[call.first_op : call.end_op]
    form = judge_mlp(scene, call.path, ops, call.inputs[0], call.outputs[0])
    if isinstance(form, str) or form.mixes_tokens:
        return form
    return form.model_copy(update={"chain": _straight_chain(scene, call, ops)})


def _straight_chain(scene: Scene, call: ModuleCall, ops: Sequence[Op]) -> tuple[str, ...]:
    """The children in call order, when each feeds the next, nothing else happens, and only linear layers learn."""
    if len(call.args) != 1 or call.kwargs or {op.name for op in ops} - ACTIVATIONS - _NEUTRAL - {"linear"}:
        return ()
    prefix = f"{call.path}." if call.path else ""
    children = dict(scene.modules[call.path].named_children())
    inner = [c for c in scene.trace.calls if c.path.startswith(prefix) and c.path.removeprefix(prefix) in children]
    steps = [c for c in inner if call.first_op <= c.first_op and c.end_op <= call.end_op]
    value = call.inputs[0].number
    for step in steps:
        module = scene.modules[step.path]
        is_plain = isinstance(module, nn.Linear) or not any(True for _ in module.parameters())
        if not is_plain or len(step.inputs) != 1 or step.inputs[0].number != value or len(step.outputs) != 1:
            return ()
        value = step.outputs[0].number
    return tuple(step.path.removeprefix(prefix) for step in steps) if value == call.outputs[0].number else ()


def _find_inline(scene: Scene, path: str) -> Iterator[Site]:
    """The MLPs in the forward at `path` itself, numbered in the order of their calls."""
    calls = scene.trace.calls_of(path)
    runs = [find_regions(scene.trace, steps_of_call(scene.trace, call)) for call in calls]
    number = 0
    for same in zip(*runs, strict=False):
        form = _agreed([_inline_form(scene, path, region) for region in same])
        if isinstance(form, MlpForm):
            yield _site(scene, path, same[0].x, same[0].y, form).model_copy(update={"number": number})
            number += 1


def _inline_form(scene: Scene, path: str, region: Region) -> MlpForm | str:
    form = judge_mlp(scene, path, region.ops, region.x, region.y)
    return form if isinstance(form, str) else form.model_copy(update={"inline": True})


def _site(scene: Scene, path: str, x: Ref, y: Ref, form: MlpForm) -> Site:
    site = Site(
        path=path,
        kind="mlp",
        type=qualified_type(scene.modules[path]),
        input_shape=x.shape,
        output_shape=y.shape,
        calls=len(scene.trace.calls_of(path)),
        mlp=form,
    )
    sharers = (owner for part in layers_of(site) or (path,) for owner in scene.shared_with(part))
    return site.model_copy(update={"shared_with": tuple(dict.fromkeys(sharers))})
