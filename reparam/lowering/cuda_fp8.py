"""cuda-fp8: as `cuda`, with shift layers in float8, whose tensor cores do twice as many products in the same time."""

import torch
from torch import nn

from reparam.lowering.base import backend
from reparam.lowering.cuda import Cuda, lacking_capability
from reparam.lowering.float8_linear import float8_linear
from reparam.ops.shift import ShiftLinear


@backend("cuda-fp8", title="float8 shift layers, for CUDA GPUs that multiply in it")
class CudaFloat8(Cuda):
    """Shift layers in float8 on a GPU; their inputs are rounded to it, a token at a time or on calibrated steps."""

    reads_ranges = True

    def form(self, module: nn.Module) -> tuple[nn.Module, str] | None:
        """The float8 form of a shift layer where its weight is exact in it; elsewhere as `Cuda`, with its refusals."""
        found = super().form(module)
        if isinstance(module, ShiftLinear) and (linear := float8_linear(module, self.settings.ranges.get(module))):
            return linear, "float8 product, " + ("one step a token" if linear.step is None else "fixed step")
        return found

    def refuse(self, device: torch.device) -> str | None:
        """It runs on CUDA devices of NVIDIA with Triton."""
        if reason := super().refuse(device):
            return reason
        if torch.version.hip:
            return "runs on GPUs of NVIDIA, whose float8 it is in"
        return lacking_capability(device, (8, 9), "float8")
