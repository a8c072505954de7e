"""What finders share: the registry, the model beside its trace, and who owns or shares what."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from reparam.errors import PlanError
from reparam.ops.base import Operator
from reparam.ops.site import Site
from reparam.registry import Registry
from reparam.trace.record import Trace


@dataclass(frozen=True)
class Scene:
    """A model and the record of its run."""

    model: nn.Module
    trace: Trace

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Modules by path that are neither operators nor parts of one."""
        converted = [path for path, module in self.model.named_modules() if isinstance(module, Operator)]
        return {
            path: module
            for path, module in self.model.named_modules()
            if not any(path == owner or path.startswith(f"{owner}.") for owner in converted)
        }

    @cached_property
    def _names_of_parameter(self) -> dict[int, list[str]]:
        names: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return names

    @cached_property
    def _paths_of_module(self) -> dict[int, list[str]]:
        paths: dict[int, list[str]] = {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            paths.setdefault(id(module), []).append(path)
        return paths

    def recorded_name(self, module: nn.Module, attribute: str) -> str:
        """The name under which the trace knows a parameter of `module`: the first that it is registered by."""
        return next(iter(self._names_of_parameter.get(id(getattr(module, attribute)), [""])))

    def aliases(self, path: str) -> list[str]:
        """Every path at which the module at `path` is registered, itself first."""
        return self._paths_of_module[id(self.model.get_submodule(path))]

    def shared_with(self, path: str) -> tuple[str, ...]:
        """Paths of modules outside `path` that own one of its parameters too."""
        inside = tuple(self.aliases(path))
        owners = [
            name.rpartition(".")[0]
            for parameter in self.model.get_submodule(path).parameters()
            for name in self._names_of_parameter[id(parameter)]
        ]
        outside = [o for o in owners if not any(o == p or o.startswith(f"{p}.") or not p for p in inside)]
        return tuple(dict.fromkeys(outside))


def qualified_type(module: nn.Module) -> str:
    """`package.module.Class` of a module."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


Finder = Callable[[Scene], Iterator[Site]]
FINDERS: Registry[Finder] = Registry(
    "finder", package="reparam.graph.finders", group="reparam.finders", error=PlanError
)


def finder(kind: str) -> Callable[[Finder], Finder]:
    """Registers the finder of one kind of site."""
    return FINDERS.register(kind)
