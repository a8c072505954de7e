"""In which floating type a product is computed, which autocast may have lowered."""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which products of `x` are computed here and now."""
    kind = x.device.type
    # The meta device has no autocast and raises when asked; `is_autocast_available` stops torch 2.11's compiler.
    is_lowered = not x.is_meta and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_lowered else x.dtype
