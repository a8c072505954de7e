"""bf16: shift weights are exact in bfloat16, so tensor cores and bf16 instructions multiply them without new rounding.

Everything else, activations and sums included, is rounded to bfloat16: a tolerance, not bits.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from reparam.errors import BackendError
from reparam.lowering.base import Backend, backend
from reparam.lowering.float32 import Float32
from reparam.lowering.plain import PlainGrid, PlainShiftConv2d, PlainShiftLinear
from reparam.ops.adder_layer import AdderLayer

#: Codes of wider grids are not whole in bfloat16's 8 significant bits.
_WIDEST_GRID = 127


@backend("bf16", title="bfloat16, for CPUs and GPUs that multiply in it")
class Bfloat16(Backend):
    """The plain forms in bfloat16; the model takes and gives what it did."""

    def form(self, module: nn.Module) -> tuple[nn.Module, str] | None:
        """As `Float32`, refused where a weight or a grid is no bfloat16 number."""
        if isinstance(module, AdderLayer):
            raise BackendError("sums of differences lose their small terms in bfloat16; lower to int8 or float32")
        found = Float32(self.settings).form(module)
        if found is None:
            return None
        plain, words = found
        if isinstance(plain, PlainShiftLinear | PlainShiftConv2d):
            _want_exact(plain)
        return plain, words.replace("float32", "bfloat16").replace("rounded weights", "exact bfloat16 weights")

    def finish_(self, model: nn.Module) -> None:
        """Brings parameters, inputs and outputs into their types."""
        model.to(torch.bfloat16)
        model.register_forward_pre_hook(_lower_inputs, with_kwargs=True)
        model.register_forward_hook(_raise_outputs)


def _want_exact(plain: PlainShiftLinear | PlainShiftConv2d) -> None:
    if not torch.equal(plain.weight.to(torch.bfloat16).float(), plain.weight):
        raise BackendError("its sums of powers of two need more than bfloat16's 8 bits; use fewer terms, or float32")
    if isinstance(plain.activation, PlainGrid) and plain.activation.largest > _WIDEST_GRID:
        raise BackendError("its 16-bit inputs need more than bfloat16's 8 bits; use activation_bits = 8, or float32")


def _lower_inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(_to(torch.bfloat16), (args, kwargs))


def _raise_outputs(module: nn.Module, args: Any, output: Any) -> Any:
    return tree_map(_to(torch.float32), output)


def _to(dtype: torch.dtype) -> Any:
    return lambda value: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
