"""Puts a new forward on a live module by swapping its class: parameters, hooks, keys and methods stay as they are.

The generated class derives from the module's own, so `isinstance` holds; it looks its forward up by mode and call
pattern. Generated classes are shared between modules with equal forwards, and survive `copy.deepcopy` and pickling.
"""

import ast
import importlib
import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import fx, nn

from reparam.graph.call_pattern import CallPattern, split_call

Key = tuple[bool, CallPattern]


@dataclass(frozen=True, slots=True)
class ForwardSource:
    """Generated source of one forward and the global names it reads, each as (module, attribute path)."""

    text: str
    imports: tuple[tuple[str, str, str], ...]


def source_of(graph: fx.Graph) -> ForwardSource:
    """Returns the Python source of a graph whose root is `self`."""
    code = graph.python_code(root_module="self")
    # What stands before the function only tells torch.fx how to trace it again.
    text = code.src[code.src.index("def forward") :]
    read = _names_read(text)
    imports = tuple((name, *_import_path(name, value)) for name, value in sorted(code.globals.items()) if name in read)
    return ForwardSource(text, imports)


def _names_read(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _import_path(name: str, value: Any) -> tuple[str, str]:
    if isinstance(value, float):
        return "math", name
    if isinstance(value, ModuleType):
        return value.__name__, ""
    return value.__module__ or "builtins", value.__qualname__


def _load(module: str, attribute: str) -> Any:
    value = importlib.import_module(module)
    for part in attribute.split(".") if attribute else ():
        value = getattr(value, part)
    return value


def _compile(source: ForwardSource) -> Callable[..., Any]:
    scope = {name: _load(module, attribute) for name, module, attribute in source.imports}
    filename = f"<reparam forward {abs(hash(source)):x}>"
    # Tracebacks and torch.compile read the source from here.
    linecache.cache[filename] = (len(source.text), None, source.text.splitlines(keepends=True), filename)
    exec(compile(source.text, filename, "exec"), scope)
    made: Callable[..., Any] = scope["forward"]
    return made


Sources = tuple[tuple[Key, ForwardSource], ...]
_CLASSES: dict[tuple[type[nn.Module], Sources], type[nn.Module]] = {}


def swap_forward(module: nn.Module, sources: Mapping[Key, ForwardSource]) -> None:
    """Gives `module` the forwards in `sources`, by training mode and call pattern; changes its class in place."""
    ordered = tuple(sorted(sources.items(), key=lambda item: (item[0][0], repr(item[0][1]))))
    module.__class__ = converted_class(_original_class(type(module)), ordered)


def _original_class(cls: type[nn.Module]) -> type[nn.Module]:
    original: type[nn.Module] = getattr(cls, "_reparam_original", cls)
    return original


def generated_forward(cls: type[nn.Module], key: Key) -> Callable[..., Any] | None:
    """Returns the function of self and the varying leaves that a converted class runs for a call; else None."""
    found: Callable[..., Any] | None = getattr(cls, "_reparam_forwards", {}).get(key)
    return found


def converted_class(original: type[nn.Module], sources: Sources) -> type[nn.Module]:
    """Returns the class that runs `sources`, made once for each pair."""
    key = (original, sources)
    if key not in _CLASSES:
        _CLASSES[key] = _make_class(original, sources)
    return _CLASSES[key]


def _make_class(original: type[nn.Module], sources: Sources) -> type[nn.Module]:
    forwards = {key: _compile(source) for key, source in sources}

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        pattern, varying, _ = split_call(args, kwargs)
        run = forwards.get((self.training, pattern))
        if run is None:
            raise RuntimeError(
                f"{original.__name__} was converted for calls with ({_known(forwards)}), got ({pattern}). "
                "Convert again with an example input that makes this call."
            )
        return run(self, *varying)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        return _rebuild, (original, sources), self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__

    members = {
        "forward": forward,
        "_reparam_forwards": forwards,
        "__reduce_ex__": reduce_ex,
        "__module__": original.__module__,
        "__doc__": original.__doc__,
        "_reparam_original": original,
    }
    return type(original.__name__, (original,), members)


def _known(forwards: Mapping[Key, Callable[..., Any]]) -> str:
    return "; ".join(sorted({str(pattern) for _, pattern in forwards}))


def _rebuild(original: type[nn.Module], sources: Sources) -> nn.Module:
    cls = converted_class(original, sources)
    return cls.__new__(cls)
