"""Models that users write and timm does not know: one for each way in which attention can hide from a rewriter.

Images are 3x16x16, patches 4x4, tokens 8 wide, heads 2, unless a class says otherwise.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS = 8, 2
HEAD_WIDTH = WIDTH // HEADS


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))


class Net(nn.Module):
    """Patches, blocks that a subclass or the caller names, the mean of the tokens, a classifier."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 3)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, 16, 8)."""
        return self.stem(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(dim=1))


class Block(nn.Module):
    """The usual block around an attention module."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = attn, mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RootNet(nn.Module):
    """Attention written out in the model's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, WIDTH, 4, stride=4), nn.Linear(WIDTH, 3)
        self.qkv, self.proj, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        weights = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(HEAD_WIDTH), dim=-1)
        x = x + self.proj((weights @ v).transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(x)).mean(dim=1))


class EinopsAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attend, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.1)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=HEADS) for t in self.to_qkv(x).chunk(3, dim=-1))
        weights = self.dropout(self.attend(torch.matmul(q, k.transpose(-1, -2)) * HEAD_WIDTH**-0.5))
        return self.to_out(rearrange(torch.matmul(weights, v), "b h n d -> b n (h d)"))


class EinsumAttention(nn.Module):
    """Heads stay behind the tokens: (B, N, H, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, HEAD_WIDTH)) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("bnhd,bmhd->bhnm", q * HEAD_WIDTH**-0.5, k).softmax(dim=-1)
        return self.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))


def eager_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    weights = torch.matmul(q, k.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = F.dropout(weights, p=0.1, training=module.training)
    return torch.matmul(weights, v).transpose(1, 2).contiguous(), weights


class EagerSelfAttention(nn.Module):
    """As Hugging Face writes it: the core in a function, weights returned beside the output."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.scaling = HEAD_WIDTH**-0.5

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shape = (*hidden.shape[:-1], -1, HEAD_WIDTH)
        q, k, v = (layer(hidden).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        context, weights = eager_attention(self, q, k, v, attention_mask, self.scaling)
        return context.reshape(*hidden.shape[:-1], -1).contiguous(), weights


class EagerAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.dense = EagerSelfAttention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        context, _ = self.attention(hidden, attention_mask=None)
        return self.dense(context)


class ShapeFlowAttention(nn.Module):
    """Pads to windows and loops over heads, both decided by sizes."""

    def __init__(self, window: int = 4) -> None:
        super().__init__()
        self.qkv, self.proj, self.window = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), window

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        side = int(math.sqrt(tokens))
        if side % self.window:
            raise ValueError(f"{side} is no multiple of {self.window}")
        if tokens > self.window**2:
            x = x[:, : self.window**2]
        qkv = self.qkv(x).reshape(batch, -1, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        for _ in range(len(x.shape) - 2):
            q = q * HEAD_WIDTH**-0.5
        out = (q @ k.mT).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k))
        return (q @ k.transpose(-2, -1) * HEAD_WIDTH**-0.5).softmax(dim=-1)


class Values(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, weights: Tensor, x: Tensor) -> Tensor:
        v = self.v(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class SplitAttention(nn.Module):
    """One child makes the weights, another uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.values = Scores(), Values()

    def forward(self, x: Tensor) -> Tensor:
        return self.values(self.scores(x), x)


class Multihead(nn.Module):
    """nn.MultiheadAttention, which torch runs as one opaque operation."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


class EncoderNet(Net):
    """torch's own encoder layers, which have a fast path that reads weights instead of calling modules."""

    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.1, batch_first=True)
        super().__init__(nn.TransformerEncoder(layer, 2))


class MaskedEncoderNet(EncoderNet):
    """An encoder that is told, for each image or once and for all, what not to look at."""

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        tokens = self.blocks[0](self.tokens(x), mask=self.mask, src_key_padding_mask=padding)
        return self.head(tokens.mean(dim=1))


def tied_net() -> Net:
    """Two blocks whose projections are one module."""
    net = Net(Block(EagerAttention()), Block(EagerAttention()))
    net.blocks[1].attn.attention.value = net.blocks[0].attn.attention.value
    return net


class TwiceNet(Net):
    """One block, run twice."""

    def __init__(self) -> None:
        super().__init__(Block(EinsumAttention()))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x)
        for _ in range(2):
            tokens = self.blocks[0](tokens)
        return self.head(tokens.mean(dim=1))


class SkippingNet(Net):
    """Leaves the second block out when the tokens are small: the model's forward reads values."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__(Block(EinopsAttention()), Block(EinopsAttention()))
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks[0](self.tokens(x))
        if tokens.abs().mean() > self.threshold:
            tokens = self.blocks[1](tokens)
        return self.head(tokens.mean(dim=1))


class PruningNet(Net):
    """Keeps the tokens whose norm is above the mean, as many as there are."""

    def __init__(self) -> None:
        super().__init__(Block(EinopsAttention()), Block(EinopsAttention()))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks[0](self.tokens(x))
        norms = tokens.norm(dim=-1).mean(dim=0)
        kept = norms.topk(int((norms > norms.mean()).sum())).indices
        return self.head(self.blocks[1](tokens[:, kept]).mean(dim=1))


class ClampedAttention(nn.Module):
    """Its own forward reads values, so which branch runs is not known before it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if q.abs().max().item() > 100:
            q = q.clamp(-100, 100)
        return self.proj(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class RoutedNet(Net):
    """Sends each token to one of two experts by index: shapes depend on values, the set of modules does not."""

    def __init__(self) -> None:
        super().__init__(Block(EinopsAttention()))
        self.router, self.experts = nn.Linear(WIDTH, 2), nn.ModuleList([mlp(), mlp()])

    def forward(self, x: Tensor) -> Tensor:
        rows = self.blocks[0](self.tokens(x))
        flat = rows.flatten(0, 1)
        chosen, out = self.router(flat).argmax(dim=-1), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            index = (chosen == number).nonzero().squeeze(1)
            out = out.index_copy(0, index, expert(flat[index]))
        return self.head((rows + out.view_as(rows)).mean(dim=1))


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The maker, with the same weights each time, in eval mode; no layer starts at zero and hides those before it."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        model = make().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        return model

    return made
