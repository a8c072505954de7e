"""cuda: bfloat16 on a GPU, with shift weights held and read in 4 or 8 bits.

Layers whose weight is one power of two an entry are packed, mixtures are grouped products of sorted tokens; the rest is
as in `bf16`.
"""

import importlib.util

import torch
from torch import nn

from reparam.lowering.base import backend
from reparam.lowering.bfloat16 import Bfloat16
from reparam.lowering.bfloat16_experts import bfloat16_experts
from reparam.lowering.packed_linear import PackedShiftLinear
from reparam.lowering.packed_weight import packed_weight
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.shift import ShiftLinear


@backend("cuda", title="bfloat16 with packed shift weights, for CUDA GPUs")
class Cuda(Bfloat16):
    """Packed forms on a GPU."""

    def form(self, module: nn.Module) -> tuple[nn.Module, str] | None:
        """The packed or grouped form of an operator; elsewhere as `Bfloat16`, with its refusals."""
        if isinstance(module, MoeMlp | RoutedLayer):
            experts = bfloat16_experts(module)
            return None if experts is None else (experts, "grouped bfloat16 products of sorted tokens")
        found = super().form(module)
        if isinstance(module, ShiftLinear) and (packed := packed_weight(module)):
            return PackedShiftLinear(module, packed), f"bfloat16 product of {packed.bits}-bit weights"
        return found

    def refuse(self, device: torch.device) -> str | None:
        """It runs on CUDA devices with Triton."""
        if device.type != "cuda":
            return f"runs on a CUDA device, and the model is on {device.type}"
        if importlib.util.find_spec("triton") is None:
            return "wants Triton, which torch brings along on Linux: pip install triton"
        return None if torch.version.hip else lacking_capability(device, (8, 0), "bfloat16")


def lacking_capability(device: torch.device, least: tuple[int, int], dtype: str) -> str | None:
    """Why an NVIDIA GPU does not multiply a type by tensor cores, in words, or None; `least` is the first that does."""
    found = torch.cuda.get_device_capability(device)
    if found >= least:
        return None
    wanted, has = (".".join(map(str, capability)) for capability in (least, found))
    return f"wants compute capability {wanted} for products in {dtype}, and this GPU has {has}"
