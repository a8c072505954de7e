"""What integer operators ask of their operands: kernels read memory as it is, and would take other types for floats."""

import torch
from torch import Tensor

from reparam.errors import ReparamError


def require_float32(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None) -> None:
    """Raises a ReparamError unless all but `packed` are float32, and all on one device, with a bias for each output."""
    if x.dtype != torch.float32:
        raise ReparamError(f"integer layers take float32, not {x.dtype}; convert the input, or leave autocast")
    require_scales(x, packed, scale, bias, step)


def require_scales(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, step: Tensor | None) -> None:
    """The same for inputs `x` of any type."""
    for tensor in (scale, bias, step):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ReparamError(
                f"an integer layer's scale, bias and step are float32, not {tensor.dtype}; lower the model again "
                "instead of converting its lowered form to another type"
            )
    for tensor in (packed, scale, bias, step):
        if tensor is not None and tensor.device != x.device:
            raise ReparamError(f"an integer layer is on {tensor.device} and its input on {x.device}; move one of them")
    if bias is not None and bias.shape != scale.shape:
        raise ReparamError(f"the bias has the shape {tuple(bias.shape)}, and the scale {tuple(scale.shape)}")
