"""A mixture of two experts on sorted tokens: every layer is one grouped product, whatever the split.

Tokens are sorted by expert once; rows up to `first` take the multiply expert's weights and the others the shift
expert's. Shapes do not depend on the split and no number is read on the host, so `torch.compile` sees straight code.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.errors import BackendError
from reparam.lowering.base import LoweredModule
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.routing import MULTIPLY, SHIFT, Router
from reparam.ops.shift import ShiftLinear


class GroupedLayer(LoweredModule):
    """One layer over the channels, of both experts."""

    @abstractmethod
    def forward(self, rows: Tensor, first: Tensor) -> Tensor:
        """Maps sorted tokens (T, C) to (T, O); rows before `first` (1,) int64 are the multiply expert's."""


class GroupedExperts(LoweredModule):
    """y = E_i(x) for each token, i by its router. Shapes as `MoeMlp`, or as `RoutedLayer`.

    `layers` are grouped layers and what stands between them, which is elementwise.
    """

    def __init__(self, router: Router, layers: Sequence[nn.Module], *, is_map: bool) -> None:
        super().__init__()
        self.router, self.layers, self.is_map = copy.deepcopy(router), nn.ModuleList(layers), is_map

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., C) to (..., O), or (B, C, H, W) to (B, O, H, W), in the type of the router's weight."""
        rows = x.movedim(1, -1) if self.is_map else x
        tokens = rows.reshape(-1, rows.shape[-1]).to(self.router.weight.dtype)
        logits = F.linear(tokens, self.router.weight, self.router.bias).float()
        shifts = logits[:, SHIFT] > logits[:, MULTIPLY]
        order, first = torch.argsort(shifts, stable=True), (~shifts).sum().view(1)
        out = tokens[order]
        for layer in self.layers:
            out = layer(out, first) if isinstance(layer, GroupedLayer) else layer(out)
        out = torch.empty_like(out).index_copy(0, order, out)
        if self.router.gate == "probability":
            out = out * logits.softmax(dim=-1).amax(dim=-1, keepdim=True).to(out.dtype)
        out = out.reshape(*rows.shape[:-1], out.shape[-1])
        return out.movedim(-1, 1).contiguous() if self.is_map else out


def grouped_experts(
    module: MoeMlp | RoutedLayer, make: Callable[[nn.Module, ShiftLinear], GroupedLayer | None]
) -> GroupedExperts | None:
    """The grouped form of a mixture; None where its experts are no chain, or where `make` gives None for a layer.

    Args:
        module: a mixture, or one routed layer.
        make: the grouped form of a layer, given as the multiply expert (`nn.Linear`, or `nn.Conv2d` of 1x1) and as the
            shift expert has it.
    """
    if isinstance(module, MoeMlp) and not module.form.chain:
        return None
    pairs, layers = dict(module.expert_layers()), list[nn.Module]()
    for name, layer in _chain(module):
        try:
            made = make(layer, pairs[layer]) if layer in pairs else copy.deepcopy(layer)
        except BackendError as error:
            raise BackendError(f"its layer {name}: {error}") from error
        if made is None:
            return None
        layers.append(made)
    is_map = isinstance(module.multiply, nn.Conv2d) if isinstance(module, RoutedLayer) else _is_map(module)
    return GroupedExperts(module.router, layers, is_map=is_map)


def is_grouped_alike(multiply: nn.Module, shift: ShiftLinear) -> bool:
    """Whether one product can serve both: the shift layer has no grid for its input, and biases are on both or none."""
    return not shift.options.activation_bits and (multiply.bias is None) == (shift.bias is None)


def _chain(module: MoeMlp | RoutedLayer) -> list[tuple[str, nn.Module]]:
    if isinstance(module, RoutedLayer):
        return [("shift", module.multiply)]
    return [(f"shift.{name}", module.multiply.get_submodule(name)) for name in module.form.chain]


def _is_map(module: MoeMlp) -> bool:
    return module.form.layout != "channels_last"
