"""Integer weights as the kernels read them: panels of 16 outputs, in each the outputs side by side, inputs in pairs.

The layout is the same on every machine, so that a saved weight can move. Outputs and inputs that fill up a panel or a
pair are zeros.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.errors import ReparamError

PANEL = 16


def pack_weight(values: Tensor) -> Tensor:
    """Packs weights (..., O, I) int16, each alone; returns (..., ceil(O / 16), ceil(I / 2), 16, 2), contiguous."""
    padded = F.pad(values, (0, values.shape[-1] % 2, 0, -values.shape[-2] % PANEL))
    panels: Tensor = padded.unflatten(-1, (-1, 2)).unflatten(-3, (-1, PANEL))
    return panels.transpose(-3, -2).contiguous()


def unpack_weight(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """Returns the weights (..., O, I) int16 that were packed."""
    return packed.transpose(-3, -2).flatten(-4, -3).flatten(-2)[..., :outputs, :inputs]


def pack_conv2d_weight(values: Tensor, *, groups: int) -> Tensor:
    """Packs a weight (O, I / groups, KH, KW) int16 of a convolution.

    Returns:
        (groups, panels, pairs, 16, 2), each group packed as a matrix over KH, KW and its inputs; of a depthwise
        convolution, with one input and one output a group, (KH * KW, O).
    """
    outputs, inputs, *_ = values.shape
    if is_depthwise(outputs, inputs, groups):
        return values.flatten(1).T.contiguous()
    return pack_weight(values.permute(0, 2, 3, 1).reshape(groups, outputs // groups, -1))


def is_depthwise(outputs: int, inputs: int, groups: int) -> bool:
    """Whether each of several groups has one output and one input; `inputs` are those of a group."""
    return outputs == groups > 1 and inputs == 1


def require_packed(packed: Tensor, *leading: int, outputs: int, inputs: int) -> None:
    """Raises a ReparamError unless `packed` holds int16 weights (leading, O, I): a kernel would read beyond others."""
    wanted = (*leading, -(-outputs // PANEL), -(-inputs // 2), PANEL, 2)
    require_int16(packed, wanted, remedy="pack_weight")


def require_int16(packed: Tensor, shape: tuple[int, ...], *, remedy: str) -> None:
    """Raises a ReparamError unless `packed` is int16 of this shape."""
    if packed.dtype != torch.int16 or packed.shape != shape:
        raise ReparamError(
            f"the packed weight must be int16 of shape {shape}, not {packed.dtype} of shape {tuple(packed.shape)}; "
            f"make it with {remedy}"
        )
