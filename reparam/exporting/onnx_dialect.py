"""Shift weights and fixed-point grids in ONNX's own operators: DequantizeLinear and QuantizeLinear."""

import torch
from torch import Tensor, nn

from reparam.exporting.adder_taps import adder_taps
from reparam.exporting.forms import Dialect
from reparam.lowering.base import LoweredModule
from reparam.lowering.plain import PlainGrid

#: From this version on, (De)QuantizeLinear take 16-bit integers.
FIRST_WITH_INT16 = 21


class OnnxDialect(Dialect):
    """The operators of one opset. Its modules can be exported, but not run: they stand for ONNX nodes."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        if opset < FIRST_WITH_INT16:
            self.widest = torch.int8
            self.advice = f". From opset {FIRST_WITH_INT16} on they take 16 bits"

    def dequantized(self, codes: Tensor, scale: Tensor, *, axis: int) -> Tensor:
        """One DequantizeLinear with a scale per channel."""
        return self._node("DequantizeLinear", codes, scale, dtype=torch.float32, axis=axis)

    def module(self, module: nn.Module) -> nn.Module | None:
        """Grids that round to nearest become a pair of nodes; adders are taken apart. Others, ONNX can write as is."""
        if isinstance(module, PlainGrid) and module.rounding == "nearest":
            codes = torch.int8 if module.largest == torch.iinfo(torch.int8).max else torch.int16
            return None if codes.itemsize > self.widest.itemsize else OnnxGrid(module, codes, self)
        return adder_taps(module)

    def grid(self, x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
        """QuantizeLinear rounds ties to even and saturates, as a fixed-point grid does; zero has the codes' type."""
        codes = self._node("QuantizeLinear", x, step, zero, dtype=zero.dtype)
        return self._node("DequantizeLinear", codes, step, zero, dtype=torch.float32)

    def _node(self, kind: str, value: Tensor, *others: Tensor, dtype: torch.dtype, **attributes: int) -> Tensor:
        made: Tensor = torch.onnx.ops.symbolic(
            kind, (value, *others), dict(attributes), dtype=dtype, shape=value.shape, version=self.opset
        )
        return made


class OnnxGrid(LoweredModule):
    """A fixed-point grid as a pair of nodes. Shapes as `PlainGrid`."""

    step: Tensor
    zero: Tensor

    def __init__(self, grid: PlainGrid, codes: torch.dtype, dialect: OnnxDialect) -> None:
        super().__init__()
        self.register_buffer("step", grid.step)
        self.register_buffer("zero", torch.zeros((), dtype=codes))
        self._dialect = dialect

    def forward(self, x: Tensor) -> Tensor:
        """Rounds `x`, any shape."""
        return self._dialect.grid(x, self.step, self.zero)
