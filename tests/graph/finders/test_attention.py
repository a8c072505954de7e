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
    DROPPED,
    FOREIGN,
    LINEAR_ALREADY,
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
    tokens = 8 if spelling == "windows" else 16
    assert (form.heads, form.head_dim, form.value_dim, form.query_tokens, form.key_tokens) == (2, 4, 4, tokens, tokens)
    assert form.grid == (None if spelling == "windows" else GRID)
    assert form.key_heads == (1 if spelling in {"one key head", "grouped queries"} else None)
    assert form.is_fused == (spelling.startswith("fused") or spelling == "grouped queries")
    assert form.dropped == ()


@pytest.mark.parametrize(
    ("spelling", "scale"),
    [
        ("scale after", 0.5),
        ("scale in front", 0.5),
        ("divided", 0.5),
        ("baddbmm", 0.5),
        ("scale before", 1.0),  # the scale is part of q
        ("softmax module", 1.0),
        ("fused", 0.5),
        ("fused with scale", 0.3),
        ("learned scale", None),
    ],
)
def test_the_scale_is_read_as_written(spelling: str, scale: float | None) -> None:
    (site,) = attention_sites(token_net(spelling))
    assert site.attention is not None
    assert site.attention.scale == (None if scale is None else pytest.approx(scale))


@pytest.mark.parametrize("spelling", DROPPED)
def test_what_a_core_would_lose_is_named(spelling: str) -> None:
    (site,) = attention_sites(token_net(spelling))
    assert (site.path, site.refusal) == ("attn", None)
    assert site.attention is not None
    assert site.attention.dropped == DROPPED[spelling][1]
    assert site.attention.query_tokens == 16


@pytest.mark.parametrize("spelling", REFUSED)
def test_what_no_operator_can_take_is_refused_by_name(spelling: str) -> None:
    site = attention_sites(token_net(spelling))[0]
    assert site.path == "attn"
    assert REFUSED[spelling][1] in (site.refusal or "")
    assert site.attention is None


@pytest.mark.parametrize("spelling", LINEAR_ALREADY)
def test_what_is_linear_in_the_tokens_already_would_gain_nothing(spelling: str) -> None:
    (site,) = attention_sites(token_net(spelling))
    assert LINEAR_ALREADY[spelling][1] in (site.no_gain or "")
    assert (site.refusal, site.attention) == (None, None)


@pytest.mark.parametrize("spelling", ["two cores", "cascade"])
def test_several_cores_in_one_forward_are_sites_of_their_own(spelling: str) -> None:
    sites = attention_sites(token_net(spelling))
    assert [(site.path, site.number, site.refusal) for site in sites] == [("attn", 0, None), ("attn", 1, None)]


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


class HeadsBesideWindows(Attention):
    """(batch * heads, windows, tokens, width), as HaloNet keeps its queries."""

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        q, k, v = (
            t.flatten(0, 1).unflatten(1, (2, -1)) for t in self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        )
        out = (q @ k.mT).softmax(-1) @ v
        return self.proj(out.flatten(1, 2).unflatten(0, (batch, 2)).transpose(1, 2).flatten(2))


def test_heads_that_share_an_axis_with_the_batch_do_not_fix_its_size() -> None:
    model = token_net(HeadsBesideWindows())
    (site,) = attention_sites(model)
    assert site.attention is not None
    assert (site.attention.heads, site.attention.head_axis, site.attention.query_tokens) == (1, None, 8)
    convert(model, recipe([ATTENTION]))
    assert model(images(3)).shape == (3, 3)


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


def test_attention_that_returns_its_weights_is_taken_when_nobody_reads_them() -> None:
    (site,) = attention_sites(token_net(TakesFirst(Returns())))
    assert (site.path, site.refusal) == ("attn.inner", None)


def test_attention_weights_that_the_model_returns_are_refused() -> None:
    class ReturnsBoth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 8, 4, stride=4), Returns()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(self.stem(x).flatten(2).transpose(1, 2))

    (site,) = attention_sites(ReturnsBoth())
    assert site.refusal == "the model returns its attention weights, which would no longer exist"


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


def test_an_attention_that_is_called_with_two_numbers_of_tokens_has_no_grid() -> None:
    (site,) = attention_sites(token_net(Twice(Attention(), halved=True)))
    assert site.refusal is None
    assert site.attention is not None
    assert site.attention.grid_missing_because == "it is called with different token grids"


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


def test_a_mask_in_the_second_call_alone_is_seen() -> None:
    (site,) = attention_sites(token_net(MaskedSecond()))
    assert site.attention is not None
    assert site.attention.dropped == ("mask",)


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
