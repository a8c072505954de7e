"""A torch.fx tracer that knows values: each node is run on meta tensors while the graph grows.

Plain symbolic tracing stops where a forward asks a proxy for a bool, an int or a length: `if pad > 0`, `range(n)`,
`x.reshape(B, C, *size)`. Here the traced value answers, and a guard in the graph checks it in every run. Sizes that no
Python decision read stay symbolic, so that other batch sizes and resolutions work.
"""

import builtins
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace

from reparam.graph.guard import expect

_VALUE = "reparam_value"


class ValueProxy(fx.Proxy):
    """A proxy that answers from the value it had while tracing, and leaves a guard behind."""

    tracer: "ValueTracer"

    @property
    def value(self) -> Any:
        """What the node gave while tracing."""
        return self.node.meta[_VALUE]

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(self.value, name)):
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", builtins.getattr, (self, name), {})

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __int__(self) -> int:
        return int(self.tracer.decided(self))

    def __index__(self) -> int:
        return int(self.tracer.decided(self))

    def __float__(self) -> float:
        return float(self.tracer.decided(self))

    def __iter__(self) -> Iterator[Any]:
        return self.tracer.iter(self)

    def __hash__(self) -> int:
        # A set or a dict asks before it compares: `x.shape[0] in {1, 2}`.
        return object.__hash__(self) if isinstance(self.value, Tensor) else hash(self._answer())

    def __str__(self) -> str:
        return super().__str__() if isinstance(self.value, Tensor) else str(self._answer())

    def __format__(self, spec: str) -> str:
        return super().__format__(spec) if isinstance(self.value, Tensor) else format(self._answer(), spec)

    def _answer(self) -> Any:
        """The value, guarded; a device is meta while tracing and another later, and only names a cache (LeViT)."""
        return self.value if isinstance(self.value, torch.device) else self.tracer.decided(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class ValueTracer(fx.Tracer):
    """Keeps children leaves, except those named in `opened`, and reads buffers by name.

    Args:
        owner: for messages.
        opened: paths of children, relative to the root, whose forwards become part of the graph.
        inputs: the values of the placeholders, on the meta device.
    """

    proxy_buffer_attributes = True

    def __init__(
        self, owner: str, *, opened: frozenset[str], inputs: tuple[Any, ...], autowrap: tuple[Any, ...]
    ) -> None:
        super().__init__(autowrap_modules=autowrap)
        self.owner, self.opened = owner, opened
        self.grad_modes: set[tuple[bool, bool]] = set()
        self._inputs = iter(inputs)
        self._is_running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Children are leaves unless they hold a part of what is looked for."""
        return module_qualified_name not in self.opened

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wraps a node."""
        return ValueProxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        """Makes a node, runs it, and notes in which gradient mode the forward was, for a graph does not keep that."""
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        self.grad_modes.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        if kind != "output":
            with self._running(), torch.no_grad():
                node.meta[_VALUE] = self._run(kind, target, args, kwargs)
        return node

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return None if target == "self" else next(self._inputs)
        if kind == "get_attr":
            if target.startswith("_tensor_constant"):
                raise ValueError("it makes a constant tensor; register it as a buffer")
            return _attribute(self.root, target)
        values = fx.node.map_arg((args, kwargs), lambda n: n.meta[_VALUE])
        positional, named = values
        if kind == "call_function":
            return target(*positional, **named)
        if kind == "call_method":
            return getattr(positional[0], target)(*positional[1:], **named)
        return self.root.get_submodule(target)(*positional, **named)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """While open, modules run instead of being traced."""
        before, self._is_running = self._is_running, True
        try:
            yield
        finally:
            self._is_running = before

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Traces a call, or runs it when a node is being run."""
        return forward(*args, **kwargs) if self._is_running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Gives proxies for parameters and buffers, or the tensors themselves when a node is being run."""
        return attr_val if self._is_running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def decided(self, proxy: fx.Proxy) -> Any:
        """The value of a proxy that a Python decision reads; the graph checks it from now on."""
        value = proxy.node.meta[_VALUE]
        if isinstance(value, Tensor):
            raise ValueError(f"it reads the value of the tensor {proxy.node.name!r}")
        self.create_proxy("call_function", expect, (proxy, value, self.owner), {})
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answers `if proxy`."""
        value = obj.node.meta[_VALUE]
        if isinstance(value, Tensor):
            raise ValueError(f"it branches on the value of the tensor {obj.node.name!r}")
        self.create_proxy("call_function", expect, (obj, bool(value), self.owner), {})
        return bool(value)

    def iter(self, obj: Any) -> Iterator[Any]:
        """Answers `for x in proxy` and `a, b = proxy`."""
        return iter([obj[number] for number in range(self.length(obj))])

    def length(self, obj: fx.Proxy) -> int:
        """Answers `len(proxy)`."""
        return int(self.decided(self.create_proxy("call_function", len, (obj,), {})))

    def keys(self, obj: fx.Proxy) -> Any:
        """Answers `**proxy`."""
        return list(obj.node.meta[_VALUE].keys())


def _attribute(root: nn.Module, target: str) -> Any:
    value: Any = root
    for name in target.split("."):
        value = getattr(value, name)
    return value


@contextmanager
def wrapping_only(names: tuple[str, ...], scope: dict[str, Any]) -> Iterator[None]:
    """While open, tracing keeps calls of these builtins in `scope` whole, and of nothing else.

    Functions that models mark with `torch.fx.wrap` are traced through: torchvision hides Swin's attention in one.
    """
    wrapped = _symbolic_trace._wrapped_fns_to_patch
    kept = dict(wrapped)
    wrapped.clear()
    wrapped.update({(id(scope), name): scope for name in names})
    try:
        yield
    finally:
        wrapped.clear()
        wrapped.update(kept)
