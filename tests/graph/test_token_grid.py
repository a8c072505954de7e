"""Every way to make tokens from an image that is drawn here has a known grid; the walk must find that one or none."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.graph.token_grid import find_token_grid
from reparam.ops.site import TokenGrid
from reparam.trace.probe import probe

FLATTENS = {
    "flatten": lambda x: x.flatten(2).transpose(1, 2),
    "permute then reshape": lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1]),
    "view then swapaxes": lambda x: x.contiguous().view(len(x), x.shape[1], -1).swapaxes(axis0=1, axis1=2),
    "flatten then mT": lambda x: torch.flatten(x, start_dim=2).mT,
    "extra axis": lambda x: x.unsqueeze(1).flatten(3).squeeze(1).permute(dims=(0, 2, 1)),
}
SPLITS = {
    "unbind": lambda t, h, d: t.reshape(*t.shape[:2], 3, h, d).permute(2, 0, 3, 1, 4).unbind(0)[2],
    "getitem": lambda t, h, d: t.reshape(*t.shape[:2], 3, h, d).permute(2, 0, 3, 1, 4)[2],
    "index behind": lambda t, h, d: t.reshape(*t.shape[:2], 3, h, d)[:, :, 2].transpose(1, 2),
    "ellipsis": lambda t, h, d: t.reshape(*t.shape[:2], h, d, 3)[..., 2].transpose(1, 2),
    "select": lambda t, h, d: t.reshape(*t.shape[:2], 3, h, d).select(2, 2).transpose(1, 2),
    "chunk": lambda t, h, d: t.chunk(3, dim=-1)[2].view(*t.shape[:2], h, d).transpose(1, 2),
    "split": lambda t, h, d: t.split(h * d, dim=2)[2].unflatten(-1, (h, d)).permute(0, 2, 1, 3),
}


class Tokens(nn.Module):
    """An image plane becomes tokens, tokens are put in front and cut off again, v (B, heads, N, width) is made."""

    def __init__(
        self, *, flatten: str, split: str, prefix: int, suffix: int, cut: int, heads: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.flatten, self.split = FLATTENS[flatten], SPLITS[split]
        self.heads, self.width, self.cut = heads, width, cut
        channels = heads * width
        self.prefix, self.suffix = (nn.Parameter(torch.zeros(1, n, channels)) for n in (prefix, suffix))
        self.layers = nn.ModuleList([nn.Linear(channels, channels) for _ in range(depth)])
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.flatten(x)
        parts = [self.prefix.expand(len(x), -1, -1), tokens, self.suffix.expand(len(x), -1, -1)]
        tokens = torch.cat([part for part in parts if part.shape[1]], dim=1)
        for layer in self.layers:
            tokens = tokens + 0.1 * F.gelu(layer(F.layer_norm(tokens, tokens.shape[-1:])))
        return self.split(self.qkv(tokens[:, self.cut :]), self.heads, self.width)


def grid_of(model: nn.Module, *shape: int) -> tuple[TokenGrid | None, str | None]:
    trace = probe(model, torch.empty(shape, device="meta"))
    return find_token_grid(trace, trace.outputs[0], dim=-2)


size = st.integers(2, 6)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    height=size,
    width=size,
    prefix=st.integers(0, 4),
    suffix=st.integers(0, 2),
    cut=st.integers(0, 3),
    heads=st.integers(1, 6),
    head_width=st.integers(1, 6),
    batch=st.integers(1, 4),
    depth=st.integers(0, 2),
    flatten=st.sampled_from(sorted(FLATTENS)),
    split=st.sampled_from(sorted(SPLITS)),
)
@example(2, 3, 0, 0, 0, 2, 3, 1, 1, "flatten", "unbind")  # heads * head_width == tokens
@example(3, 3, 0, 0, 0, 3, 3, 3, 0, "flatten then mT", "getitem")  # every size is 3 or 9
@example(2, 4, 1, 0, 0, 3, 3, 2, 1, "permute then reshape", "index behind")  # 1 + 8 tokens, 9 channels
@example(2, 2, 2, 0, 0, 6, 1, 6, 0, "extra axis", "select")  # heads == tokens == batch
@example(2, 6, 0, 0, 0, 4, 3, 2, 0, "flatten", "chunk")  # as many tokens as channels
@example(2, 3, 1, 0, 1, 2, 3, 1, 1, "flatten", "unbind")  # the class token is cut off again
@example(2, 2, 1, 2, 2, 2, 2, 1, 0, "flatten", "unbind")  # a cut image with as many tokens as before
def test_the_grid_is_the_true_one_for_every_size_and_layout(
    height: int, width: int, prefix: int, suffix: int, cut: int, heads: int, head_width: int, batch: int,
    depth: int, flatten: str, split: str,
) -> None:  # fmt: skip
    model = Tokens(
        flatten=flatten, split=split, prefix=prefix, suffix=suffix, cut=cut, heads=heads, width=head_width, depth=depth
    )
    grid, reason = grid_of(model, batch, heads * head_width, height, width)
    if cut > prefix:
        assert (grid, reason) == (None, f"the tokens are only a part of the {height}x{width} image tokens")
    elif suffix:
        assert (grid, reason) == (None, f"{suffix} tokens follow the {height}x{width} image tokens")
    else:
        assert (grid, reason) == (TokenGrid(prefix=prefix - cut, height=height, width=width), None)


class Shuffled(nn.Module):
    """16 tokens of a 4x4 plane, in an order that a convolution must not mistake for the plane's."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("order", torch.arange(16).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.way == "indexed":
            tokens = tokens[:, self.order]
        elif self.way == "gathered":
            tokens = tokens.gather(1, self.order[None, :, None].expand(tokens.shape))
        elif self.way == "selected":
            tokens = tokens.index_select(1, self.order)
        elif self.way == "rolled":
            tokens = tokens.roll(1, dims=1)
        else:
            tokens = tokens.flip(1)
        return tokens.unsqueeze(1)


@pytest.mark.parametrize("way", ["indexed", "gathered", "selected", "rolled", "flipped"])
def test_tokens_that_may_stand_in_another_order_have_no_grid(way: str) -> None:
    grid, reason = grid_of(Shuffled(way), 2, 8, 4, 4)
    assert grid is None
    assert reason


class Reshapes(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.way == "windows":
            parts = x.reshape(b, c, h // 2, 2, w // 3, 3).permute(0, 2, 4, 3, 5, 1)
            return parts.reshape(-1, 1, 6, c)
        if self.way == "windows as one axis":
            blocks = x.reshape(b, c, h // 2, 2, w // 3, 3).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, 6, c)
            return blocks.flatten(1, 2).unsqueeze(1)
        if self.way == "frames":
            return x.reshape(b, 2, c // 2, h, w).permute(0, 1, 3, 4, 2).flatten(1, 3).unsqueeze(1)
        if self.way == "frames in two steps":
            return x.reshape(b, 2, c // 2, h, w).flatten(3).transpose(2, 3).flatten(1, 2).unsqueeze(1)
        if self.way == "split otherwise":
            return x.flatten(2).transpose(1, 2).reshape(b, 3, 8, c).relu().reshape(b, 1, 24, c)
        if self.way == "split and merged again":
            return x.flatten(2).transpose(1, 2).view(b, 1, h, w, c).relu().flatten(2, 3)
        if self.way == "windows of merged patches":
            plane = x.permute(0, 2, 3, 1)
            merged = torch.cat([plane[:, 0::2, 0::2], plane[:, 1::2, 1::2]], dim=-1)
            return merged.view(b, h // 4, 2, w // 6, 3, 2 * c).transpose(2, 3).reshape(-1, 1, 6, 2 * c)
        if self.way == "windows of a split":
            plane = x.flatten(2).transpose(1, 2).reshape(b, h, w, c)
            return plane.view(b, h // 2, 2, w // 3, 3, c).transpose(2, 3).reshape(-1, 1, 6, c)
        return x[:, :, 0].transpose(1, 2).unsqueeze(1)


@pytest.mark.parametrize(
    ("way", "grid", "reason"),
    [
        ("windows", TokenGrid(prefix=0, height=2, width=3), None),
        ("windows as one axis", None, "merges 4x6, which are not the two axes of an image plane"),
        ("frames", None, "merges 3 axes of sizes 2x4x6"),
        ("frames in two steps", None, "merges 2x24, which are not the two axes of an image plane"),
        ("split otherwise", None, "merges 3x8, which are not the two axes of an image plane"),
        ("split and merged again", TokenGrid(prefix=0, height=4, width=6), None),
        ("windows of a split", TokenGrid(prefix=0, height=2, width=3), None),
        ("windows of merged patches", TokenGrid(prefix=0, height=2, width=3), None),
        ("row", None, "no operation that flattens an image plane"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_window_is_a_grid_and_a_merge_of_more_than_a_plane_is_none(
    way: str, grid: TokenGrid | None, reason: str | None
) -> None:
    found, why = grid_of(Reshapes(way), 2, 8, 4, 6)
    assert found == grid
    assert (why is None) if reason is None else (reason in (why or ""))


def test_tokens_that_were_never_an_image_have_no_grid() -> None:
    embedding = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8))
    trace = probe(embedding, torch.zeros(2, 16, dtype=torch.int64))
    grid, reason = find_token_grid(trace, trace.outputs[0], dim=1)
    assert grid is None
    assert reason == "no operation that flattens an image plane was found behind the tokens"


class Rotates(nn.Module):
    """Multiplies tokens that were never an image by a table of positions on a plane."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")[0].flatten()[:, None]
        return (x * table.to(x)).unsqueeze(1)


def test_a_table_of_positions_is_not_the_plane_of_the_tokens() -> None:
    assert grid_of(Rotates(), 2, 16, 8)[0] is None


class PadsAndCuts(nn.Module):
    """A channels-last plane is padded and cut into windows."""

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        plane = F.pad(F.conv2d(x, torch.ones(1, 8, 1, 1, device=x.device)).permute(0, 2, 3, 1), (0, 0, 0, 1, 0, 1))
        return plane.view(b, (h + 1) // 5, 5, (w + 1) // 5, 5, 1).transpose(2, 3).reshape(-1, 1, 25, 1)


def test_windows_of_a_padded_plane_are_grids() -> None:
    assert grid_of(PadsAndCuts(), 2, 8, 4, 9)[0] == TokenGrid(prefix=0, height=5, width=5)


def test_channels_merged_with_rows_are_no_plane() -> None:
    class Merges(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x).flatten(1, 2).unsqueeze(1)

    assert grid_of(Merges(), 2, 8, 4, 4) == (
        None,
        "the token axis merges 8x4, which are not the two axes of an image plane",
    )


class Exchanges(nn.Module):
    """Two branches of tokens give each other their class token."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = (torch.cat([t.mean((2, 3)).unsqueeze(1), t.flatten(2).mT], dim=1) for t in (x, y))
        return torch.cat([second[:, :1] + 1.0, first[:, 1:]], dim=1).unsqueeze(1)


def test_a_class_token_of_another_image_does_not_bring_its_grid_along() -> None:
    trace = probe(Exchanges(), (torch.empty(2, 8, 4, 6), torch.empty(2, 8, 7, 7)))
    grid, _ = find_token_grid(trace, trace.outputs[0], dim=-2)
    assert grid == TokenGrid(prefix=1, height=4, width=6)
