"""Which attention is found, what is refused in which words, and what must not be taken for attention."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.ops.site import AttentionForm, Site, TokenGrid
from reparam.trace.probe import probe
from tests.pico import (
    ATTENTION,
    FOREIGN,
    REFUSED,
    SPELLINGS,
    Attention,
    convert,
    images,
    inline_net,
    recipe,
    token_net,
    vit,
)

GRID = TokenGrid(prefix=0, height=4, width=4)


def attention_sites(model: nn.Module, x: Tensor | tuple[Tensor, ...] | None = None) -> list[Site]:
    x = images() if x is None else x
    return [site for site in find_sites(Scene(model, probe(model, x))) if site.kind == "attention"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_softmax_attention_is_found_in_its_owner(spelling: str) -> None:
    (site,) = attention_sites(token_net(spelling))
    assert (site.path, site.type, site.refusal) == ("attn", "tests.pico.Attention", None)
    form = site.attention
    assert form is not None
    assert (form.heads, form.head_dim, form.value_dim, form.query_tokens, form.key_tokens) == (2, 4, 4, 16, 16)
    assert form.grid == GRID
    assert form.is_fused == spelling.startswith("fused")


@pytest.mark.parametrize(
    ("spelling", "scale", "divides"),
    [
        ("scale after", 0.5, False),
        ("scale in front", 0.5, False),
        ("divided", 2.0, True),
        ("scale before", 1.0, False),  # the scale is part of q
        ("softmax module", 1.0, False),
        ("fused", 0.5, False),
        ("fused with scale", 0.3, False),
    ],
)
def test_the_scale_is_read_as_written(spelling: str, scale: float, divides: bool) -> None:
    (site,) = attention_sites(token_net(spelling))
    assert site.attention is not None
    assert (site.attention.scale, site.attention.scale_divides) == (pytest.approx(scale), divides)


@pytest.mark.parametrize("spelling", REFUSED)
def test_what_an_operator_cannot_express_is_refused_by_name(spelling: str) -> None:
    (site,) = attention_sites(token_net(spelling))
    assert site.path == "attn"
    assert REFUSED[spelling][1] in (site.refusal or "")
    assert site.attention is None


@pytest.mark.parametrize("spelling", FOREIGN)
def test_what_only_looks_like_attention_is_no_site(spelling: str) -> None:
    assert attention_sites(token_net(spelling)) == []


def test_a_softmax_over_classes_is_no_attention() -> None:
    assert attention_sites(nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.Softmax(dim=-1))) == []


@pytest.mark.parametrize(
    ("model", "x", "prefix", "grid"),
    [
        (vit(), images(), 1, (4, 4)),
        (vit(distilled=True), images(), 2, (4, 4)),
        (vit(reg_tokens=3), images(), 4, (4, 4)),
        (vit(class_token=False, global_pool="avg"), images(), 0, (4, 4)),
        (vit(img_size=(16, 24)), images(width=24), 1, (4, 6)),
        (vit(img_size=(24, 16)), images(height=24), 1, (6, 4)),
        (vit(dynamic_img_size=True), images(), 1, (4, 4)),
        (token_net(Attention(tokens=19), prefix=3), images(), 3, (4, 4)),
    ],
    ids=["class", "distilled", "registers", "none", "wide", "high", "dynamic", "custom"],
)
def test_the_grid_and_the_prefix_tokens_are_those_of_the_model(
    model: nn.Module, x: Tensor, prefix: int, grid: tuple[int, int]
) -> None:
    for site in attention_sites(model, x):
        assert site.attention is not None
        assert site.attention.grid == TokenGrid(prefix=prefix, height=grid[0], width=grid[1])


def test_tokens_behind_the_image_leave_the_attention_without_a_grid() -> None:
    (site,) = attention_sites(token_net(Attention(tokens=18), suffix=2))
    assert site.refusal is None
    assert site.attention is not None
    assert (site.attention.grid, site.attention.grid_missing_because) == (
        None,
        "2 tokens follow the 4x4 image tokens",
    )


def test_attention_written_in_a_block_belongs_to_the_block() -> None:
    sites = attention_sites(inline_net())
    assert [(site.path, site.refusal) for site in sites] == [("blocks.0", None), ("blocks.1", None)]


class RootAttention(nn.Module):
    """Attention in the forward of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2).unsqueeze(1)
        return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens)).mean(dim=(1, 2))


def test_attention_in_the_models_own_forward_belongs_to_the_model_and_converts() -> None:
    model = RootAttention().eval()
    (site,) = attention_sites(model)
    assert (site.path, site.refusal) == ("", None)
    before = model(images())
    convert(model, recipe([ATTENTION]))
    assert [name for name, _ in model.named_children()] == ["stem", "head", "core"]
    assert not torch.equal(model(images()), before)


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


def test_torchs_multihead_attention_is_refused_and_neither_overlooked_nor_broken() -> None:
    (site,) = attention_sites(token_net(Multihead()))
    assert site.path == "attn.mha"
    assert "torch.nn.MultiheadAttention runs as one opaque operation" in (site.refusal or "")


def test_torchs_encoder_layer_is_seen_through_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    (site,) = attention_sites(token_net(layer))
    assert site.path == "attn.self_attn"
    assert "opaque" in (site.refusal or "")


class Returns(Attention):
    """Gives its attention weights back too, as some libraries do for inspection."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2)), weights


class TakesFirst(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def test_attention_that_returns_its_weights_is_refused_even_when_nobody_reads_them() -> None:
    (site,) = attention_sites(token_net(TakesFirst(Returns())))
    assert site.path == "attn.inner"
    assert site.refusal == "its forward returns the attention weights, which would no longer exist"


class Twice(nn.Module):
    def __init__(self, inner: nn.Module, *, halved: bool = False) -> None:
        super().__init__()
        self.inner, self.halved = inner, halved

    def forward(self, x: Tensor) -> Tensor:
        first = self.inner(x)
        return first + self.inner(x[:, ::2]).mean() if self.halved else self.inner(first)


def test_an_attention_that_is_called_twice_is_one_site_with_two_calls() -> None:
    (site,) = attention_sites(token_net(Twice(Attention())))
    assert (site.path, site.calls, site.refusal) == ("attn.inner", 2, None)


def test_an_attention_that_is_called_with_two_shapes_is_refused() -> None:
    (site,) = attention_sites(token_net(Twice(Attention(), halved=True)))
    assert site.refusal == "it is called with different shapes, and one core cannot have two"


class MaskedSecond(nn.Module):
    """The same attention without and with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Optional()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x), torch.zeros(16, 16, device=x.device))


class Optional(Attention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT
        if mask is not None:
            scores = scores + mask
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_an_attention_whose_second_call_has_a_mask_is_refused() -> None:
    (site,) = attention_sites(token_net(MaskedSecond()))
    assert "stands 'add'" in (site.refusal or "")


class Cross(nn.Module):
    """One learned query attends to all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 2, 1, 4))
        self.kv = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        q = self.query.expand(len(x), -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_pooling_by_one_query_is_found_with_its_numbers_of_tokens() -> None:
    (site,) = attention_sites(token_net(Cross()))
    assert site.attention is not None
    assert (site.attention.query_tokens, site.attention.key_tokens) == (1, 16)


def test_the_form_of_deit_tiny_is_that_of_its_paper() -> None:
    model = vit(img_size=224, patch_size=16, embed_dim=192, num_heads=3, depth=1)
    (site,) = attention_sites(model, torch.empty(2, 3, 224, 224, device="meta"))
    assert site.attention == AttentionForm(
        heads=3,
        head_dim=64,
        value_dim=64,
        query_tokens=197,
        key_tokens=197,
        scale=1 / math.sqrt(64),
        is_fused=True,
        grid=TokenGrid(prefix=1, height=14, width=14),
        reads_only_prefix=True,
    )
