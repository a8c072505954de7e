"""The adder convolution under autograd, with AdderNet's gradients.

    Y[o, p]   = -sum_k |W[o, k] - X[k, p]|                            k runs over channels and kernel positions
    dL/dW     = sum_p g[o, p] * (X[k, p] - W[o, k])                   the sign of the true derivative is dropped
    dL/dX     = sum_o g[o, p] * HardTanh(W[o, k] - X[k, p])           the sign is replaced by a clipped difference

The gradient of W is a matrix product: that of a convolution's weight, minus W times the sums of g. A padded pixel is a
zero, so it counts -|w|; with `mask` it counts nothing, forward and backward.
Source: AdderNet, arXiv:1912.13200.  Shapes: X (B, I, H, W), W (O, I / groups, KH, KW), Y (B, O, OH, OW).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from reparam.kernels.adder import adder_forward, adder_input_gradient
from reparam.kernels.geometry import Pair


def adder_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    mask: bool = False,
) -> Tensor:
    """Returns Y (B, O, OH, OW), plus the bias (O,) where there is one.

    Computed in float32 also under autocast and for half-precision inputs: sums of absolute values grow with the number
    of inputs, and their differences are what counts. The result has the input's type and memory format.
    """
    if torch.compiler.is_exporting():
        out = _exportable(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups, mask=mask)
    else:
        out = _AdderConv2d.apply(x, weight, stride, padding, dilation, groups, mask)
    return out if bias is None else out + bias.to(out.dtype).view(-1, 1, 1)


class _AdderConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int, mask: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.mask = (stride, padding, dilation, groups), mask
        y = adder_forward(_channels_last(x), weight.to(_wide(x)), *ctx.geometry).permute(0, 3, 1, 2)
        if mask:
            # Autocast would take this convolution in half precision.
            with torch.autocast(x.device.type, enabled=False):
                y = y + _of_padding(x, weight.to(y.dtype), *ctx.geometry)
        out: Tensor = y.to(x.dtype, memory_format=_format(x))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g, w = gradient.to(_wide(x)), weight.to(_wide(x))
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = adder_input_gradient(_channels_last(g), _channels_last(x), w, *ctx.geometry).permute(0, 3, 1, 2)
            to_x = to_x.to(x.dtype, memory_format=_format(x))
        if ctx.needs_input_grad[1]:
            to_weight = _weight_gradient(g, x.to(g.dtype), w, *ctx.geometry, mask=ctx.mask).to(weight.dtype)
        return to_x, to_weight, None, None, None, None, None


def _weight_gradient(
    g: Tensor, x: Tensor, w: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int, *, mask: bool
) -> Tensor:
    """sum_p g X - W sum_p g, over the pixels that count."""
    by_x: Tensor = conv2d_weight(x, w.shape, g, stride, padding, dilation, groups)
    if not mask:
        return by_x - w * g.sum((0, 2, 3)).view(-1, 1, 1, 1)
    ones = torch.ones_like(x[:, :1])
    size = (len(w), 1, *w.shape[2:])
    sums: Tensor = conv2d_weight(ones, size, g, stride, padding, dilation)
    return by_x - w * sums


def _of_padding(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """What padded pixels took from Y: |w| at each, the same for all images (1, O, OH, OW)."""
    around = (padding[1], padding[1], padding[0], padding[0])
    is_padding = F.pad(weight.new_zeros(1, 1, *x.shape[2:]), around, value=1.0)
    return F.conv2d(is_padding, weight.abs().sum(1, keepdim=True), stride=stride, dilation=dilation)


def _exportable(
    x: Tensor, weight: Tensor, *, stride: Pair, padding: Pair, dilation: Pair, groups: int, mask: bool
) -> Tensor:
    """The same by operations that every runtime has: distances of unfolded patches, without gradients of its own."""
    wide, w = x.to(_wide(x)), weight.to(_wide(x))
    patches = F.unfold(wide, weight.shape[2:], dilation=dilation, padding=padding, stride=stride)
    patches = patches.unflatten(1, (groups, -1)).transpose(2, 3)  # (B, G, P, K)
    y = -torch.cdist(patches, w.unflatten(0, (groups, -1)).flatten(2), p=1.0)
    size = [
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
    ]
    y = y.transpose(2, 3).flatten(1, 2).unflatten(2, size)
    if mask:
        y = y + _of_padding(x, w, stride, padding, dilation, groups)
    out: Tensor = y.to(x.dtype)
    return out


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).to(_wide(x)).contiguous()


def _format(x: Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format
