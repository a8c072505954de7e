"""Finds linear and convolution layers: modules whose weight takes part in the run, called or read by their owner."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from reparam.graph.finders.base import Scene, finder, qualified_type
from reparam.graph.neighbours import feeds_no_layer, is_normalised, reads_no_layer
from reparam.ops.site import Site
from reparam.recipe.schema import Kind
from reparam.trace.record import ModuleCall, Op, Ref, Trace

LAYERS: dict[Kind, type[nn.Module]] = {"linear": nn.Linear, "conv2d": nn.Conv2d}
#: At most this many names are listed in a reason.
_SHOWN = 3


@finder("linear")
def find_linear(scene: Scene) -> Iterator[Site]:
    """Yields every `nn.Linear`, subclasses included."""
    return _find(scene, "linear")


@finder("conv2d")
def find_conv2d(scene: Scene) -> Iterator[Site]:
    """Yields every `nn.Conv2d`, subclasses included."""
    return _find(scene, "conv2d")


def why_no_leaf(scene: Scene, path: str, *, kind: Kind) -> str | None:
    """The first test by which the module at `path` is no site of kind "linear" or "conv2d"; None when it is one."""
    module = scene.modules[path]
    if isinstance(module, LAYERS[kind]):
        return None
    name = type(module).__name__
    inside = [
        inner for inner, leaf in scene.modules.items() if isinstance(leaf, LAYERS[kind]) and _lies_in(inner, path)
    ]
    if inside:
        return f"its class is {name}; {_some(inside)} inside it {'is one' if len(inside) == 1 else 'are'}"
    if any(op.name == kind and op.stack[-1:] == (path,) for op in scene.trace.ops):
        return (
            f"its class is {name}, which runs {kind!r} on a weight of its own; wanted torch.nn.{LAYERS[kind].__name__}"
        )
    return f"its class is {name}, not torch.nn.{LAYERS[kind].__name__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """What a run did with one layer: its calls, the operations that read its weight, and those of its own forward."""

    calls: list[ModuleCall]
    readers: list[Op]
    products: list[Op]

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the first call; where only the weight is read, of the operation that reads it."""
        if self.calls and self.calls[0].inputs and self.calls[0].outputs:
            return self.calls[0].inputs[0].shape, self.calls[0].outputs[0].shape
        return (self.readers[0].inputs[0].shape, self.readers[0].output.shape) if self.readers else ((), ())


def _find(scene: Scene, kind: Kind) -> Iterator[Site]:
    calls: dict[str, list[ModuleCall]] = {}
    for call in scene.trace.calls:
        calls.setdefault(call.path, []).append(call)
    readers: dict[str, list[Op]] = {}
    products: dict[str, list[Op]] = {}
    for op in scene.trace.ops:
        for name in {ref.name for ref in op.inputs if ref.name}:
            readers.setdefault(name, []).append(op)
        if op.name == kind and op.stack:
            products.setdefault(op.stack[-1], []).append(op)
    for path, module in scene.modules.items():
        if isinstance(module, LAYERS[kind]):
            read = readers.get(scene.recorded_name(module, "weight"), [])
            use = _Use(calls=calls.get(path, []), readers=_own(path, read), products=products.get(path, []))
            yield _site(scene, path, kind, use)


def _own(path: str, readers: list[Op]) -> list[Op]:
    """Of the operations that read a weight, those in the layer's own forward; all when only others read it."""
    return [op for op in readers if path in op.stack] or readers


def _site(scene: Scene, path: str, kind: Kind, use: _Use) -> Site:
    input_shape, output_shape = use.shapes
    products = use.products or use.readers
    return Site(
        path=path,
        kind=kind,
        type=qualified_type(scene.modules[path]),
        input_shape=input_shape,
        output_shape=output_shape,
        is_first=bool(products) and all(reads_no_layer(scene.trace, op.inputs[0]) for op in products),
        is_last=bool(products) and all(feeds_no_layer(scene.trace, op.output) for op in products),
        is_called=bool(use.calls),
        normalised=bool(use.calls) and all(is_normalised(scene.trace, out) for c in use.calls for out in c.outputs),
        calls=len(use.calls) or len(use.readers),
        shared_with=scene.shared_with(path),
        idle=not use.calls and not use.readers,
        refusal=_refuse(scene.trace, path, kind, use),
    )


def _refuse(trace: Trace, path: str, kind: Kind, use: _Use) -> str | None:
    if not use.readers and use.calls:
        return _other_weight(trace, kind, use.products)
    # A forward of its own may prepare the weight first; whether it can be lost is the operator's question.
    foreign = [op for op in use.readers if op.name != kind and path not in op.stack]
    return f"its weight is read by {foreign[0].name!r}, not by a {kind} operation" if foreign else None


def _other_weight(trace: Trace, kind: Kind, products: list[Op]) -> str:
    """Where the weight of a layer comes from whose own parameter `weight` nothing reads."""
    weight = products[0].argument(1, "weight") if products else None
    if not isinstance(weight, Ref):
        return f"its forward runs no {kind} operation"
    if weight.name is not None:
        return f'its forward reads "{weight.name}", not a weight of its own'
    if trace.depends_on_input(weight):
        return "its weight is computed from the model's input"
    sources = {ref.name for op in trace.ancestors(weight) for ref in op.inputs if ref.name}
    return f"its weight is computed from {_some(sorted(sources))}"


def _lies_in(path: str, owner: str) -> bool:
    return path != owner and (not owner or path.startswith(f"{owner}."))


def _some(names: list[str]) -> str:
    """Writes a few names, and how many more there are."""
    shown = ", ".join(f'"{name}"' for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
