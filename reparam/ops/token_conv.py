"""Depthwise convolutions of an attention's values: over the token grid, or along the token index as released."""

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from reparam.ops.site import TokenGrid


class TokenConv(nn.Module):
    """Depthwise convolution of v (B, H, N, E) over the token grid, one filter per channel; prefix tokens get nothing.

    At another image size the grid is taken to keep the aspect ratio of the traced one, for the core sees tokens, not
    images. For images of another shape, convert with an example input of that shape.
    """

    def __init__(self, channels: int, kernel: int, grid: TokenGrid, *, init: Literal["zero", "normal"]) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        _init_filter(self.conv.weight, init)

    def forward(self, v: Tensor) -> Tensor:
        """Returns (B, H, N, E)."""
        batch, heads, tokens, width = v.shape
        height = self._height(tokens - self.grid.prefix)
        plane = v[:, :, self.grid.prefix :].transpose(2, 3).reshape(batch, heads * width, height, -1)
        out = self.conv(plane).reshape(batch, heads, width, -1).transpose(2, 3)
        return F.pad(out, (0, 0, self.grid.prefix, 0)) if self.grid.prefix else out

    def _height(self, tokens: int) -> int:
        grid = self.grid
        if tokens == grid.height * grid.width:
            return grid.height
        height = round(math.sqrt(tokens * grid.height / grid.width))
        if height == 0 or tokens % height:
            raise ValueError(
                f"{tokens} tokens fill no grid of aspect {grid.height}:{grid.width}, which the model was traced with"
            )
        return height


class SequenceConv(nn.Module):
    """1-D convolution of v (B, H, N, E) along the token index, one filter per head, as ShiftAddViT released it."""

    def __init__(self, heads: int, kernel: int, *, init: Literal["zero", "normal"]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)
        _init_filter(self.conv.weight, init)

    def forward(self, v: Tensor) -> Tensor:
        """Returns (B, H, N, E)."""
        out: Tensor = self.conv(v)
        return out


def _init_filter(weight: Tensor, init: Literal["zero", "normal"]) -> None:
    if init == "zero":
        nn.init.zeros_(weight)
    else:
        nn.init.normal_(weight, std=math.sqrt(2.0 / weight[0].numel()))
