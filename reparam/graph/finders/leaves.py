"""Finds linear and convolution layers: modules whose weight takes part in the run, called or read by their owner."""

from collections.abc import Iterator

from torch import nn

from reparam.graph.finders.base import Scene, finder, qualified_type
from reparam.ops.site import Site
from reparam.recipe.schema import Kind
from reparam.trace.record import Op


@finder("linear")
def find_linear(scene: Scene) -> Iterator[Site]:
    """Yields every `nn.Linear`, subclasses included."""
    return _find(scene, nn.Linear, "linear")


@finder("conv2d")
def find_conv2d(scene: Scene) -> Iterator[Site]:
    """Yields every `nn.Conv2d`, subclasses included."""
    return _find(scene, nn.Conv2d, "conv2d")


def _find(scene: Scene, layer: type[nn.Module], kind: Kind) -> Iterator[Site]:
    readers: dict[str, list[Op]] = {}
    for op in scene.trace.ops:
        for name in {ref.name for ref in op.inputs if ref.name}:
            readers.setdefault(name, []).append(op)
    for path, module in scene.modules.items():
        if isinstance(module, layer):
            yield _site(scene, path, module, kind, _own(path, readers.get(scene.recorded_name(module, "weight"), [])))


def _own(path: str, readers: list[Op]) -> list[Op]:
    """Of the operations that read a weight, those in the layer's own forward; all when only others read it."""
    return [op for op in readers if path in op.stack] or readers


def _site(scene: Scene, path: str, module: nn.Module, kind: Kind, readers: list[Op]) -> Site:
    return Site(
        path=path,
        kind=kind,
        type=qualified_type(module),
        input_shape=readers[0].inputs[0].shape if readers else (),
        output_shape=readers[0].output.shape if readers else (),
        calls=len(readers),
        shared_with=scene.shared_with(path),
        refusal=_refuse(scene, path, kind, readers),
    )


def _refuse(scene: Scene, path: str, kind: Kind, readers: list[Op]) -> str | None:
    if not readers and scene.trace.calls_of(path):
        return "its weight is computed from other parameters"
    if not readers:
        return "it took no part in the run on the example input"
    foreign = [op for op in readers if op.name != kind]
    # A subclass may prepare its weight first; whether its forward can be lost is the operator's question.
    if foreign and type(scene.modules[path]) in {nn.Linear, nn.Conv2d}:
        return f"its weight is read by {foreign[0].name!r}, not by a {kind} operation"
    return None
