"""What a model consists of when it is exported: shift weights as integers with their scales, and plain operations.

The forms begin where `lowering`'s float32 ones end: an inference-only copy without gradients.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.exporting.weight_codes import WeightCodes, weight_codes
from reparam.lowering.base import LoweredModule, LoweringSettings
from reparam.lowering.lower import lowered_copy
from reparam.lowering.plain import PlainShiftConv2d, PlainShiftLinear
from reparam.ops.conv_form import ConvAttributes


class Dialect:
    """How integers become numbers in the target's own terms; here in torch's.

    `widest` are the widest integers it takes; `advice` is what to say where weights need wider ones.
    """

    widest = torch.int16
    advice = ""

    def dequantized(self, codes: Tensor, scale: Tensor, *, axis: int) -> Tensor:
        """Returns codes times their channel's scale, float32; `axis` is that of the channels."""
        shape = [1] * codes.ndim
        shape[axis] = -1
        return codes.float() * scale.view(shape)

    def module(self, module: nn.Module) -> nn.Module | None:
        """The form of any other module, or None to leave it."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedWeight:
    """A shift layer's weight: the layer's path, how it is held (int8, int16, float32), and how many numbers it has."""

    path: str
    form: str
    numbers: int


class CodedLayer(LoweredModule):
    """Base of the layers whose weight is held as integers. `weight` (O, ...) is what models read off themselves."""

    codes: Tensor
    scale: Tensor
    axis: int

    def __init__(self, held: WeightCodes, plain: PlainShiftLinear | PlainShiftConv2d, dialect: Dialect) -> None:
        super().__init__()
        self.register_buffer("codes", held.codes)
        self.register_buffer("scale", held.scale)
        self.bias, self.activation, self._dialect = plain.bias, plain.activation, dialect

    def dequantized(self) -> Tensor:
        """The weight in the layout of the codes."""
        return self._dialect.dequantized(self.codes, self.scale, axis=self.axis)

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The weight (O, ...), float32."""


class CodedLinear(CodedLayer):
    """Y = X W' + b; the codes are (I, O), as a product reads them. Shapes as `ShiftLinear`."""

    axis = 1

    def __init__(self, plain: PlainShiftLinear, held: WeightCodes, dialect: Dialect) -> None:
        transposed = WeightCodes(codes=held.codes.t().contiguous(), scale=held.scale)
        super().__init__(transposed, plain, dialect)
        self.in_features, self.out_features = plain.in_features, plain.out_features

    @property
    def weight(self) -> Tensor:
        """The weight (O, I), float32."""
        return self.dequantized().t()

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O)."""
        product: Tensor = self.activation(x) @ self.dequantized()
        return product if self.bias is None else product + self.bias


class CodedConv2d(CodedLayer, ConvAttributes):
    """Y = conv2d(X, W') + b. Shapes as `ShiftConv2d`."""

    axis = 0

    def __init__(self, plain: PlainShiftConv2d, held: WeightCodes, dialect: Dialect) -> None:
        super().__init__(held, plain, dialect)
        self.form = plain.form
        self.in_channels, self.out_channels = plain.in_channels, plain.out_channels

    @property
    def weight(self) -> Tensor:
        """The weight (O, I / groups, KH, KW), float32."""
        return self.dequantized()

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, OH, OW)."""
        return self.form.conv2d(self.form.prepared(self.activation(x)), self.weight, self.bias)


def exportable_copy(model: nn.Module, dialect: Dialect) -> tuple[nn.Module, tuple[ExportedWeight, ...]]:
    """Returns an inference-only copy of `model` in plain operations, and how each shift weight is held in it.

    Args:
        model: in float32 on the CPU; it is not changed.
        dialect: of the target; weights that need wider integers than it takes stay float32.
    """
    copied, _ = lowered_copy(model, "float32", LoweringSettings())
    weights = []
    for paths, module in _places(copied):
        if isinstance(module, PlainShiftLinear | PlainShiftConv2d):
            held = weight_codes(module.weight, widest=dialect.widest)
            if held is not None:
                _put_(copied, paths, _coded(module, held, dialect))
            form = "float32" if held is None else str(held.codes.dtype).removeprefix("torch.")
            weights.append(ExportedWeight(path=paths[0], form=form, numbers=module.weight.numel()))
    for paths, module in _places(copied):
        if (written := dialect.module(module)) is not None:
            _put_(copied, paths, written)
    return copied, tuple(weights)


def _places(model: nn.Module) -> list[tuple[list[str], nn.Module]]:
    """Each module with all paths that it has: one may be registered under several names."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    return [(own, module) for module, own in paths.items()]


def _put_(model: nn.Module, paths: Iterable[str], form: nn.Module) -> None:
    for path in paths:
        model.set_submodule(path, form)


def _coded(plain: PlainShiftLinear | PlainShiftConv2d, held: WeightCodes, dialect: Dialect) -> CodedLayer:
    return (
        CodedLinear(plain, held, dialect) if isinstance(plain, PlainShiftLinear) else CodedConv2d(plain, held, dialect)
    )
