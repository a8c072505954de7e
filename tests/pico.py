"""Models small enough to build and convert in milliseconds, and the recipes that convert them.

Images are 3x16x16 unless said otherwise and patches 4x4, so the token grid is 4x4.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.graph.plan import make_plan
from reparam.graph.records import Plan, Totals
from reparam.graph.rewrite import rewrite
from reparam.recipe.schema import Recipe

WIDTH, HEADS = 8, 2


def images(batch: int = 2, *, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def vit(*, distilled: bool = False, **options: Any) -> VisionTransformer:
    """timm's own class: two blocks, width 16, two heads, a class token (and a distillation token)."""
    torch.manual_seed(0)
    make = VisionTransformerDistilled if distilled else VisionTransformer
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return make(**(sizes | options)).eval()


Spelling = Callable[["Attention", Tensor, Tensor, Tensor], Tensor]
SPELLINGS: dict[str, Spelling] = {
    "scale before": lambda m, q, k, v: ((q * m.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v,
    "scale after": lambda m, q, k, v: ((q @ k.transpose(-2, -1)) * m.scale).softmax(-1) @ v,
    "scale in front": lambda m, q, k, v: (m.scale * (q @ k.transpose(2, 3))).softmax(-1) @ v,
    "divided": lambda m, q, k, v: ((q @ k.mT) / math.sqrt(q.shape[-1])).softmax(-1) @ v,
    "matmul": lambda m, q, k, v: torch.matmul(F.softmax(torch.matmul(q, k.transpose(3, 2)) * m.scale, dim=-1), v),
    "torch.softmax": lambda m, q, k, v: torch.softmax(q @ k.transpose(dim0=-1, dim1=-2), dim=3) @ v,
    "swapaxes": lambda m, q, k, v: (q @ k.swapaxes(axis0=2, axis1=3)).softmax(-1) @ v,
    "softmax module": lambda m, q, k, v: m.softmax(q @ k.mT) @ v,
    "permuted keys": lambda m, q, k, v: (q @ k.permute(0, 1, 3, 2)).softmax(-1) @ v,
    "product modules": lambda m, q, k, v: m.product(m.product(q, k.mT).softmax(-1), v),
    "fused": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "fused with scale": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "fused with dropout": lambda m, q, k, v: F.scaled_dot_product_attention(
        q, k, v, dropout_p=m.drop.p if m.training else 0.0
    ),
    "dropout module": lambda m, q, k, v: m.drop((q @ k.mT).softmax(-1)) @ v,
    "functional dropout": lambda m, q, k, v: F.dropout((q @ k.mT).softmax(-1), m.drop.p, m.training) @ v,
    "learned scale": lambda m, q, k, v: (q @ k.mT * m.head_scale.exp()).softmax(-1) @ v,
    "cosine": lambda m, q, k, v: (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * m.head_scale).softmax(-1) @ v,
    "stable softmax": lambda m, q, k, v: (lambda s: (s - s.amax(-1, keepdim=True)).softmax(-1))(q @ k.mT) @ v,
    "cast": lambda m, q, k, v: (q @ k.mT).float().softmax(-1, dtype=torch.float32).type_as(v) @ v,
    "keys on the left": lambda m, q, k, v: (v.mT @ (k @ q.mT).softmax(-2)).mT,
    "transposed weights": lambda m, q, k, v: (v.mT @ (q @ k.mT).softmax(-1).mT).mT,
    "einsum": lambda m, q, k, v: torch.einsum(
        "bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", q, k).mul(m.scale).softmax(-1), v
    ),
    "einsum with heads last": lambda m, q, k, v: torch.einsum(
        "b h n m, b m h d -> b n h d",
        torch.einsum("b n h d, b m h d -> b h n m", q.transpose(1, 2), k.transpose(1, 2)).softmax(dim=-1),
        v.transpose(1, 2),
    ).transpose(1, 2),
    "einsum with an ellipsis": lambda m, q, k, v: torch.einsum("...nd,...md->...nm", q, k).softmax(-1) @ v,
    "merged heads": lambda m, q, k, v: torch.bmm(
        torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1), v.flatten(0, 1)
    ).unflatten(0, q.shape[:2]),
    "baddbmm": lambda m, q, k, v: (
        torch.baddbmm(q.new_empty(1, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=m.scale)
        .softmax(-1)
        .bmm(v.flatten(0, 1))
        .unflatten(0, q.shape[:2])
    ),
    "windows": lambda m, q, k, v: (lambda a, b, c: ((a @ b.mT).softmax(-1) @ c).flatten(2, 3))(
        *(t.unflatten(2, (2, -1)) for t in (q, k, v))
    ),
    "one key head": lambda m, q, k, v: (q @ k[:, :1].mT).softmax(-1) @ v[:, :1],
    "grouped queries": lambda m, q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
}


def _writes_scores(m: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[..., 1:, 1:] = scores[..., 1:, 1:] + m.bias[1:, 1:]
    return scores.softmax(-1) @ v


def _shifted_window_mask(m: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT).view(1, len(q), *q.shape[1:3], k.shape[2]) + m.mask
    return scores.view(-1, *q.shape[1:3], k.shape[2]).softmax(-1) @ v


def _mask_made_in_the_forward(m: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    region = q.new_zeros(q.shape[-2])
    region[4:] = 1.0
    return (q @ k.mT - 100.0 * (region[:, None] - region[None, :]).abs()).softmax(-1) @ v


def _gated_with_positions(m: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    gate = m.head_scale.sigmoid()
    return ((1 - gate) * (q @ k.mT).softmax(-1) + gate * m.bias.softmax(-1)) @ v


def _mixes_heads_by_linear(m: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return m.mix_last((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1) @ v


#: What a core of q, k and v loses: how it is written, and the kinds.
DROPPED: dict[str, tuple[Spelling, tuple[str, ...]]] = {
    "bias": (lambda m, q, k, v: (q @ k.mT + m.bias).softmax(-1) @ v, ("bias",)),
    "bias in front": (lambda m, q, k, v: (m.bias + q @ k.mT * m.scale).softmax(-1) @ v, ("bias",)),
    "written bias": (_writes_scores, ("bias",)),
    "bias by baddbmm": (
        lambda m, q, k, v: (
            torch.baddbmm(m.bias[None], q.flatten(0, 1), k.flatten(0, 1).mT)
            .softmax(-1)
            .bmm(v.flatten(0, 1))
            .unflatten(0, q.shape[:2])
        ),
        ("bias",),
    ),
    "fused bias": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias), ("bias",)),
    "mask": (lambda m, q, k, v: (q @ k.mT).masked_fill(m.mask > 1, -9.0).softmax(-1) @ v, ("mask",)),
    "added mask": (_shifted_window_mask, ("mask",)),
    "made mask": (_mask_made_in_the_forward, ("mask",)),
    "query bias": (lambda m, q, k, v: (q @ k.mT + q @ m.bias[:4]).softmax(-1) @ v, ("query_bias",)),
    "talking heads": (lambda m, q, k, v: m.mix((q @ k.mT).softmax(-1)) @ v, ("talking_heads",)),
    "linear over heads": (_mixes_heads_by_linear, ("talking_heads",)),
    "soft cap": (lambda m, q, k, v: ((q @ k.mT) / 5).tanh().mul(5).softmax(-1) @ v, ("score_function",)),
    "mixture": (_gated_with_positions, ("mixture",)),
    "causal": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), ("causal",)),
    "triangle": (
        lambda m, q, k, v: (q @ k.mT).masked_fill(torch.ones_like(m.mask).triu(1) > 0, -9.0).softmax(-1) @ v,
        ("causal",),
    ),
}


def _reads_weights_twice(m: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    return weights @ v + weights.mean()


def _reads_scores_twice(m: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    return scores.softmax(-1) @ v + scores.mean()


def _differential(m: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT).softmax(-1) - 0.5 * (k @ q.mT).softmax(-1)) @ v


#: What must be refused: how it is written, and words of the reason.
REFUSED: dict[str, tuple[Spelling, str]] = {
    "differential": (_differential, "a difference of two softmaxes (differential attention)"),
    "weights read twice": (_reads_weights_twice, "its attention weights are read by 'mean' too"),
    "scores read twice": (_reads_scores_twice, "its attention weights are read by 'mean' too"),
    "across the batch": (
        lambda m, q, k, v: (
            (lambda a, b, c: (a @ b.mT).softmax(-1) @ c)(*(t.transpose(0, 2) for t in (q, k, v)))
        ).transpose(0, 2),
        "it attends across the batch",
    ),
}
#: What would gain nothing.
LINEAR_ALREADY: dict[str, tuple[Spelling, str]] = {
    "over channels": (lambda m, q, k, v: ((q.mT @ k).softmax(-1) @ v.mT).mT, "attends over channels"),
}
#: What looks a little like attention and is none.
FOREIGN: dict[str, Spelling] = {
    "sigmoid": lambda m, q, k, v: (q @ k.mT).sigmoid() @ v,
    "softmax over queries": lambda m, q, k, v: (q @ k.mT).softmax(-2) @ v,
    "softmax of q and k": lambda m, q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v),
    "gate": lambda m, q, k, v: (
        v * m.proj(q.transpose(1, 2).flatten(2)).softmax(-1).unflatten(2, (2, -1)).transpose(1, 2)
    ),
}
_ALL = SPELLINGS | FOREIGN | {name: given[0] for name, given in (DROPPED | REFUSED | LINEAR_ALREADY).items()}
#: Cores of a few plain spellings in one forward.
_ALL["two cores"] = lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v - F.scaled_dot_product_attention(k, q, v)
_ALL["cascade"] = lambda m, q, k, v: (lambda first: (k @ q.mT).softmax(-1) @ first)((q @ k.mT).softmax(-1) @ v)


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


class Attention(nn.Module):
    """Self-attention over (B, N, 8) with its core written in one of the spellings above."""

    def __init__(self, spelling: str = "fused", *, dropout: float = 0.3, tokens: int = 16) -> None:
        super().__init__()
        self.spelling = spelling
        self.scale = (WIDTH // HEADS) ** -0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.drop, self.softmax, self.product = nn.Dropout(dropout), nn.Softmax(dim=-1), Product()
        self.mix, self.mix_last = nn.Conv2d(HEADS, HEADS, 1), nn.Linear(HEADS, HEADS)
        self.bias = nn.Parameter(torch.randn(tokens, tokens))
        self.head_scale = nn.Parameter(torch.randn(HEADS, 1, 1))
        self.register_buffer("mask", torch.randn(tokens, tokens))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        return self.proj(_ALL[self.spelling](self, q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class TokenNet(nn.Module):
    """Patches, `prefix` tokens in front and `suffix` behind, the given `attn`, mean over tokens, a classifier."""

    def __init__(self, attn: nn.Module, *, prefix: int = 0, suffix: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.front = nn.Parameter(torch.randn(1, prefix, WIDTH)) if prefix else None
        self.back = nn.Parameter(torch.randn(1, suffix, WIDTH)) if suffix else None
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = attn
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        extra = [None if t is None else t.expand(len(x), -1, -1) for t in (self.front, self.back)]
        tokens = torch.cat([t for t in (extra[0], tokens, extra[1]) if t is not None], dim=1)
        tokens = tokens + self.attn(self.norm(tokens))
        return self.head(tokens.mean(dim=1))


def token_net(attn: nn.Module | str, **options: Any) -> TokenNet:
    torch.manual_seed(0)
    return TokenNet(Attention(attn) if isinstance(attn, str) else attn, **options).eval()


class InlineBlock(nn.Module):
    """Attention written out in the block's own forward, beside an MLP; drops its branch while training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        y = self.norm(x)
        q, k, v = (
            layer(y).view(batch, tokens, HEADS, width // HEADS).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(width // HEADS), dim=-1)
        y = (weights @ v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + F.dropout(y, 0.2, self.training)
        return x + self.mlp(x)


class InlineNet(nn.Module):
    """A model that timm does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.blocks = nn.ModuleList([InlineBlock(), InlineBlock()])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(dim=1))


def inline_net() -> InlineNet:
    torch.manual_seed(0)
    return InlineNet().eval()


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, bias=False))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


def recipe(*stages: list[dict[str, Any]]) -> Recipe:
    """A recipe of the given rules, one list for each stage."""
    made = [{"name": f"stage-{number}", "rule": rules} for number, rules in enumerate(stages)]
    return Recipe.model_validate({"name": "toy", "summary": "For tests.", "stage": made})


ATTENTION = {"match": {"kind": "attention"}, "operator": "binary_linear_attention"}
LINEAR = {"match": {"kind": "linear"}, "operator": "shift_linear"}
MLP = {"match": {"kind": "mlp"}, "operator": "moe_mlp"}
KEEP_HEAD = {"match": {"path": "head*"}, "operator": "keep"}
FULL = recipe([ATTENTION], [KEEP_HEAD, {**LINEAR, "match": {"kind": "linear", "within": "attention"}}, MLP])


def binary_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The operator's formula, written out over pairs of tokens, with zero thresholds and no convolution."""
    q, k = (torch.where(x >= 0, 1.0, -1.0) for x in (q, k))
    d = q.shape[-1]
    similarity = ((q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) + d) / (2 * d)
    return (similarity.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2) / similarity.sum(-1, keepdim=True)


def plan_for(model: nn.Module, wanted: Recipe, example_input: Any = None, **options: Any) -> Plan:
    """A plan without counts."""
    example_input = images() if example_input is None else example_input
    return make_plan(model, wanted, example_input, count=lambda *_: Totals(parameters=0, operations={}), **options)


def convert(model: nn.Module, wanted: Recipe = FULL, example_input: Any = None, **options: Any) -> nn.Module:
    """Plans and rewrites in place, with verification."""
    example_input = images() if example_input is None else example_input
    return rewrite(model, plan_for(model, wanted, example_input, **options), example_input)


def site_of(plan: Plan, path: str, *, kind: str | None = None, stage: int = 0) -> Any:
    """The site at `path` in a plan, whatever its fate."""
    records = (*plan.stages[stage].steps, *plan.stages[stage].skips)
    found = [r.site for r in records if r.site.path == path and (kind is None or r.site.kind == kind)]
    assert len(found) == 1, (path, kind, found)
    return found[0]
