"""A mixture of two experts on sorted tokens: every layer is one grouped integer product, whatever the split.

Tokens are sorted by expert once; rows up to `first` take the multiply expert's weights and the others the shift
expert's. Shapes do not depend on the split and no number is read on the host, so `torch.compile` sees straight code.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.kernels.integer_linear import grouped_integer_linear
from reparam.kernels.integer_weight import pack_weight
from reparam.lowering.base import LoweredModule
from reparam.lowering.input_codes import INT8
from reparam.lowering.integer_weight import IntegerWeight, rounded_weight, shift_parts
from reparam.ops.fixed_point import grid_step
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.routing import MULTIPLY, SHIFT, Router
from reparam.ops.shift import ShiftLinear


class GroupedLinear(LoweredModule):
    """One layer of both experts: int8 weights for the multiply expert, the shift expert's own, exactly."""

    packed: Tensor
    scale: Tensor
    bias: Tensor | None
    step: Tensor | None

    def __init__(
        self, multiply: nn.Module, shift: ShiftLinear, own: IntegerWeight, met: Mapping[nn.Module, Tensor]
    ) -> None:
        super().__init__()
        assert isinstance(multiply, nn.Linear | nn.Conv2d)
        both = (rounded_weight(multiply), own)
        self.register_buffer("packed", pack_weight(torch.stack([part.values for part in both])))
        self.register_buffer("scale", torch.stack([part.scale for part in both]))
        biases = [bias.detach() for bias in (multiply.bias, shift.bias) if bias is not None]
        self.register_buffer("bias", torch.stack(biases) if biases else None)
        largest = [met[layer] for layer in (multiply, shift) if layer in met]
        self.register_buffer("step", grid_step(torch.stack(largest).amax(), INT8) if largest else None)

    def forward(self, rows: Tensor, first: Tensor) -> Tensor:
        """Maps sorted tokens (T, C) to (T, O); rows before `first` (1,) are the multiply expert's."""
        return grouped_integer_linear(rows, self.packed, self.scale, self.bias, first, self.step)


class GroupedExperts(LoweredModule):
    """y = E_i(x) for each token, i by its router. Shapes as `MoeMlp`, or as `RoutedLayer`.

    `layers` are grouped linear layers and what stands between them, which is elementwise.
    """

    def __init__(self, router: Router, layers: Sequence[nn.Module], *, is_map: bool) -> None:
        super().__init__()
        self.router, self.layers, self.is_map = copy.deepcopy(router), nn.ModuleList(layers), is_map

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., C) to (..., O), or (B, C, H, W) to (B, O, H, W)."""
        rows = x.movedim(1, -1) if self.is_map else x
        tokens = rows.reshape(-1, rows.shape[-1]).float()
        logits = F.linear(tokens, self.router.weight, self.router.bias)
        shifts = logits[:, SHIFT] > logits[:, MULTIPLY]
        order, first = torch.argsort(shifts, stable=True), (~shifts).sum().view(1)
        out = tokens[order]
        for layer in self.layers:
            out = layer(out, first) if isinstance(layer, GroupedLinear) else layer(out)
        out = torch.empty_like(out).index_copy(0, order, out)
        if self.router.gate == "probability":
            out = out * logits.softmax(dim=-1).amax(dim=-1, keepdim=True)
        out = out.reshape(*rows.shape[:-1], out.shape[-1])
        return out.movedim(-1, 1).contiguous() if self.is_map else out


def grouped_experts(module: MoeMlp | RoutedLayer, met: Mapping[nn.Module, Tensor]) -> GroupedExperts | None:
    """The grouped form of a mixture; None where its experts are no chain, have grids, or need more than one product.

    Args:
        module: a mixture, or one routed layer.
        met: largest input magnitudes of its layers where a calibration met them, for fixed steps.
    """
    if isinstance(module, MoeMlp) and not module.form.chain:
        return None
    pairs = dict(module.expert_layers())
    if any(shift.options.activation_bits or (m.bias is None) != (shift.bias is None) for m, shift in pairs.items()):
        return None
    weights = {multiply: shift_parts(shift, largest=INT8) for multiply, shift in pairs.items()}
    if any(len(parts) > 1 for parts in weights.values()):
        return None
    layers = [
        GroupedLinear(layer, pairs[layer], weights[layer][0], met) if layer in pairs else copy.deepcopy(layer)
        for layer in _chain(module)
    ]
    is_map = isinstance(module.multiply, nn.Conv2d) if isinstance(module, RoutedLayer) else _is_map(module)
    return GroupedExperts(module.router, layers, is_map=is_map)


def _chain(module: MoeMlp | RoutedLayer) -> list[nn.Module]:
    if isinstance(module, RoutedLayer):
        return [module.multiply]
    return [module.multiply.get_submodule(name) for name in module.form.chain]


def _is_map(module: MoeMlp) -> bool:
    return module.form.layout != "channels_last"
