"""Runs torch functions on meta tensors, and works out what each makes of the same layouts only once.

On the meta device torch takes milliseconds for a norm or an activation, whose decomposition runs in Python for nothing
but a shape. Models repeat a few dozen layouts in thousands of calls, and a conversion runs them several times.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ELEMENTWISE = (
    "abs add clamp div eq exp floor ge gt le log2 lt masked_fill maximum mean minimum mul ne neg pow reciprocal round "
    "rsqrt sigmoid sign sqrt square sub sum tanh where"
)
_PRODUCTS = "baddbmm bmm conv2d matmul softmax"
_OPERATORS = (
    "__add__ __radd__ __mul__ __rmul__ __sub__ __rsub__ __truediv__ __rtruediv__ __matmul__ __neg__ __pow__ "
    "__lt__ __le__ __gt__ __ge__"
)
_LAYERS = (
    "adaptive_avg_pool2d batch_norm conv1d conv2d gelu group_norm hardsigmoid hardswish layer_norm linear normalize "
    "relu relu6 rms_norm scaled_dot_product_attention silu softmax"
)


def _functions(*namespaces: tuple[Any, str]) -> frozenset[Any]:
    named = [(space, name) for space, names in namespaces for name in names.split()]
    return frozenset(getattr(space, name) for space, name in named if hasattr(space, name))


#: Those whose result is one new tensor, of a layout that follows from its arguments' and from nothing else.
_PURE = _functions(
    (torch, f"{_ELEMENTWISE} {_PRODUCTS}"), (Tensor, f"{_ELEMENTWISE} {_PRODUCTS} {_OPERATORS}"), (F, _LAYERS)
)
_SCALARS = (int, float, bool, str, type(None), torch.dtype, torch.device)


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _Scalar(NamedTuple):
    type: type  # 1, 1.0 and True are equal and make other types
    value: Any


class _UnknownError(Exception):
    """An argument that is neither a plain meta tensor nor a number or the like."""


def run(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Returns `function(*args, **kwargs)`; of meta tensors a new one of the layout that these arguments give."""
    if function not in _PURE or kwargs.get("inplace") or "out" in kwargs or torch.is_grad_enabled():
        return function(*args, **kwargs)
    try:
        described = tuple(map(_described, args)), tuple((name, _described(value)) for name, value in kwargs.items())
    except _UnknownError:
        return function(*args, **kwargs)
    if not any(isinstance(leaf, _Layout) for leaf in (*described[0], *(leaf for _, leaf in described[1]))):
        return function(*args, **kwargs)
    layout = _result(function, *described, torch.get_default_dtype())
    return layout.empty()


def _described(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        if type(argument) in (Tensor, nn.Parameter) and argument.is_meta and argument.layout == torch.strided:
            return _Layout(tuple(argument.shape), argument.stride(), argument.dtype)
    elif isinstance(argument, _SCALARS):
        return _Scalar(type(argument), argument)
    elif isinstance(argument, tuple | list):
        return tuple(map(_described, argument))
    raise _UnknownError


def _made(description: Any) -> Any:
    if isinstance(description, _Layout):
        return description.empty()
    return description.value if isinstance(description, _Scalar) else tuple(map(_made, description))


@lru_cache(maxsize=20_000)
def _result(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...], dtype: torch.dtype
) -> _Layout:
    """The layout of what a function makes of arguments so described; `dtype` is torch's default."""
    made = function(*map(_made, args), **{name: _made(value) for name, value in kwargs})
    return _Layout(tuple(made.shape), made.stride(), made.dtype)
