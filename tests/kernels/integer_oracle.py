"""Integer layers number by number: exact Python numbers for codes and sums, and numpy's float32 for what is rounded.

Also the backends that must agree with it: each compiled form that this machine can run, and plain torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from reparam.kernels import integer_native
from reparam.kernels.native import native_library

#: Flags that leave the compiler fewer instructions than this machine has; on others than x86 they build nothing.
_FLAGS = {"native": (), "avx2": ("-mno-avx512f",), "plain": ("-mno-avx2",)}
BACKENDS = (*_FLAGS, "torch")


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Runs the operators by this backend; without a compiler, by plain torch."""

    def library(name: str) -> CDLL | None:
        return None if backend == "torch" else native_library(name, *integer_native.FLAGS, *_FLAGS[backend])

    with patch.object(integer_native, "_library", library):
        yield


def step_of(row: list[float], largest: int = 127) -> float:
    """The smallest power of two, at least 2**-126, of which so many reach every magnitude."""
    exponent = -126
    while largest * 2.0**exponent < max(map(abs, row), default=0.0):
        exponent += 1
    return 2.0**exponent


def codes_of(row: list[float], step: float, largest: int = 127) -> list[int]:
    """Python rounds ties to even; a quotient by a power of two is exact."""
    return [max(-largest - 1, min(largest, round(max(-1e5, min(1e5, value / step))))) for value in row]


def scaled(sums: Tensor, step: float, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Float32 of integer sums (..., O), in the order that is promised."""
    y = sums.numpy().astype(np.float32) * (np.float32(step) * scale.numpy())
    return torch.from_numpy(y if bias is None else y + bias.numpy())


def linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None, largest: int = 127
) -> Tensor:
    """Of finite x (M, I) and a weight (O, I)."""
    rows = []
    for row in x.tolist():
        own = step_of(row, largest) if step is None else float(step)
        sums = torch.tensor(codes_of(row, own, largest)) @ weight.long().T
        rows.append(scaled(sums, own, scale, bias))
    return torch.stack(rows) if rows else x.new_empty(0, len(weight))
