"""The layers of a mixture as grouped products in bfloat16, whose split stays on the device."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.lowering.grouped_experts import GroupedExperts, GroupedLayer, grouped_experts, is_grouped_alike
from reparam.ops.experts import widths_are_aligned
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.shift import ShiftLinear

#: On GPUs before it torch loops over the experts, and reads the split on the host for it.
_GROUPED_FROM = (9, 0)


class GroupedBfloat16Linear(GroupedLayer):
    """One layer of both experts, `weight` (2, O, I) and `bias` (2, O).

    Where the device has no grouped product of these sizes both experts run on all tokens and one is selected.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, multiply: nn.Linear | nn.Conv2d, shift: ShiftLinear) -> None:
        super().__init__()
        both = multiply.weight.detach().flatten(1), shift.weight.detach()
        self.register_buffer("weight", torch.stack(both))
        biases = [bias.detach() for bias in (multiply.bias, shift.bias) if bias is not None]
        self.register_buffer("bias", torch.stack(biases) if biases else None)
        self.is_grouped = widths_are_aligned([shift]) and _has_grouped(self.weight.device)

    def forward(self, rows: Tensor, first: Tensor) -> Tensor:
        """As `GroupedLayer`; bfloat16."""
        is_shifted = torch.arange(len(rows), device=rows.device).unsqueeze(1) >= first
        if self.is_grouped:
            ends = torch.cat([first, torch.full_like(first, len(rows))]).to(torch.int32)
            out = F.grouped_mm(rows, self.weight.transpose(1, 2), offs=ends)
        else:
            multiply, shift = (F.linear(rows, weight) for weight in self.weight)
            out = torch.where(is_shifted, shift, multiply)
        return out if self.bias is None else out + torch.where(is_shifted, self.bias[1], self.bias[0])


def bfloat16_experts(module: MoeMlp | RoutedLayer) -> GroupedExperts | None:
    """The grouped form of a mixture; None where its experts are no chain, have grids, or bfloat16 is too narrow."""

    def make(multiply: nn.Module, shift: ShiftLinear) -> GroupedBfloat16Linear | None:
        assert isinstance(multiply, nn.Linear | nn.Conv2d)
        is_exact = torch.equal(shift.weight.to(torch.bfloat16).float(), shift.weight)
        return GroupedBfloat16Linear(multiply, shift) if is_exact and is_grouped_alike(multiply, shift) else None

    return grouped_experts(module, make)


def _has_grouped(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= _GROUPED_FROM
