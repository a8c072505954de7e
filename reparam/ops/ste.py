"""Straight-through estimators: forward values that are rounded, backward gradients that are chosen and stated."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, value: Tensor, limit: Tensor | None) -> Tensor:
        ctx.has_limit = limit is not None
        if limit is not None:
            ctx.save_for_backward(latent, limit)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.has_limit:
            latent, limit = ctx.saved_tensors
            gradient = gradient.masked_fill((latent.abs() > limit) & (gradient * latent < 0), 0.0)
        return gradient, None, None


def straight_through(latent: Tensor, value: Tensor, *, limit: Tensor | None = None) -> Tensor:
    """Returns `value` bit for bit; backward: dL/dlatent = dL/dvalue, and `value` gets no gradient.

    With a `limit`, a latent whose magnitude has passed it gets no gradient that would push it further out (descent on
    a gradient of the opposite sign): a saturated weight must be able to come back. The common
    `latent + (value - latent).detach()` is not exact: the sum rounds.
    """
    return _StraightThrough.apply(latent, value.detach(), limit)  # type: ignore[no-any-return]


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, centred: Tensor, low: float, window: float) -> Tensor:
        ctx.save_for_backward(centred.abs() <= window)
        ctx.slope = (1.0 - low) / (2.0 * window)
        return torch.where(centred >= 0, 1.0, low).to(centred.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside * ctx.slope, None, None


def binarize(centred: Tensor, *, low: float, window: float) -> Tensor:
    """Returns 1 where `centred >= 0` and `low` elsewhere.

    Backward is that of the ramp from `low` to 1 over [-window, window]:
    dL/dcentred = dL/dcode * (1 - low) / (2 * window) inside the window, 0 outside. The window is symmetric around the
    threshold, so units on both sides learn.

    Args:
        centred: any shape; values minus their threshold.
        low: the lower code, -1 or 0.
        window: half-width of the ramp, above 0.
    """
    return _Binarize.apply(centred, low, window)  # type: ignore[no-any-return]


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, largest: int) -> Tensor:
        scaled = x * step.reciprocal()
        ctx.save_for_backward(scaled)
        ctx.largest = largest
        return scaled.round().clamp_(-largest - 1, largest).mul_(step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scaled,) = ctx.saved_tensors
        # One fused pass over values in grid units, whose bounds need no read from the device.
        inside = torch.ops.aten.hardtanh_backward(gradient, scaled, -ctx.largest - 1.5, ctx.largest + 0.5)
        return inside, None, None


def round_to_grid(x: Tensor, step: Tensor, *, largest: int) -> Tensor:
    """Returns `step * clamp(round(x / step), -largest - 1, largest)`, ties to even.

    Backward: dL/dx = dL/dout where -largest - 1.5 < x / step < largest + 0.5, where nothing was clipped, else 0.

    Args:
        x: any shape, float32.
        step: a scalar power of two, so that scaling is exact.
        largest: largest integer of the grid.
    """
    return _RoundToGrid.apply(x, step, largest)  # type: ignore[no-any-return]
