"""A causal mask is seen however it is made, for tokens that look ahead cannot be told from the output's shape."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.errors import PlanError
from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.trace.probe import probe
from tests.pico import ATTENTION, LINEAR, images, plan_for, recipe, token_net

TOKENS = 16
LOWER = torch.ones(TOKENS, TOKENS).tril()
CAUSAL = torch.zeros(TOKENS, TOKENS).masked_fill(LOWER == 0, float("-inf"))
PLACE = torch.arange(TOKENS)
DISTANCE = (PLACE[:, None] - PLACE).abs().float()

Spelling = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Masked(nn.Module):
    """Attention over 16 tokens with a tensor that is a buffer, or an attribute that torch does not know of."""

    def __init__(self, mask: Tensor, spelling: Spelling, *, is_buffer: bool = True) -> None:
        super().__init__()
        self.qkv, self.spelling = nn.Linear(8, 24), spelling
        if is_buffer:
            self.register_buffer("mask", mask, persistent=False)
        else:
            self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.spelling(q, k, v, self.mask).transpose(1, 2).flatten(2)


def add(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.mT + mask).softmax(-1) @ v


def fill(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    tokens = q.shape[-2]
    return (q @ k.mT).masked_fill(mask[:tokens, :tokens] == 0, float("-inf")).softmax(-1) @ v


def cast(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.mT + mask[None, None].to(q)).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool())


def with_padding(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    padding = (k.sum(-1) > -100).unsqueeze(-2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool() & padding)


def keys_in_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (k @ q.mT + mask.mT).softmax(-2).mT @ v


def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[:, :, mask == 0] = float("-inf")
    return scores.softmax(-1) @ v


def compared(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    place = torch.arange(q.shape[-2], device=q.device)
    return (q @ k.mT).masked_fill(place > place[:, None], -1e9).softmax(-1) @ v


def made_like(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.mT
    behind = torch.ones_like(scores).cumsum(-1) > torch.ones_like(scores).cumsum(-2)
    return scores.masked_fill(behind, -1e9).softmax(-1) @ v


def on_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return ((q @ k.mT).softmax(-1) * mask) @ v


def dropped(mask: Tensor, spelling: Spelling, *, is_buffer: bool = True) -> tuple[str, ...]:
    model = token_net(Masked(mask, spelling, is_buffer=is_buffer))
    (site,) = [s for s in find_sites(Scene(model, probe(model, images()))) if s.kind == "attention"]
    assert site.attention is not None
    return site.attention.dropped


@pytest.mark.parametrize(
    ("mask", "spelling"),
    [
        (LOWER, fill),
        (LOWER, fused),
        (LOWER.bool(), fused),
        (LOWER, with_padding),
        (LOWER, written),
        (LOWER, compared),
        (LOWER, made_like),
        (LOWER, on_weights),
        (CAUSAL, add),
        (CAUSAL, cast),
        (CAUSAL, keys_in_rows),
        (CAUSAL.mT.contiguous(), add),
        (CAUSAL - DISTANCE, add),
        (CAUSAL.masked_fill(DISTANCE > 4, float("-inf")), add),
        (torch.zeros(16, 16).masked_fill(PLACE[:, None] // 4 < PLACE // 4, -1e9), add),
        (CAUSAL.expand(2, 16, 16).contiguous(), add),
    ],
    ids=[
        "filled", "fused", "flags", "with padding", "written", "compared", "made like the scores", "on the weights",
        "added", "cast to the scores", "keys in rows", "from the back", "with a slope", "in a band", "in blocks",
        "for each head",
    ],
)  # fmt: skip
def test_a_triangle_is_seen_in_the_values_of_a_mask(mask: Tensor, spelling: Spelling) -> None:
    assert "causal" in dropped(mask, spelling)


def test_a_triangle_in_a_plain_attribute_is_seen() -> None:
    assert dropped(CAUSAL, add, is_buffer=False) == ("causal",)


def _windows() -> Tensor:
    region = (PLACE >= 8).long()
    return torch.where(region == region[:, None], 0.0, -100.0)


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(16, 16),
        _windows(),
        -DISTANCE,
        torch.zeros(16, 16).fill_diagonal_(float("-inf")),
        torch.randn(16, 16, generator=torch.Generator().manual_seed(0)),
        (torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float(),
        torch.zeros(1, 16).index_fill(1, torch.tensor([15]), float("-inf")),
    ],
    ids=["nothing", "shifted windows", "a slope", "not oneself", "numbers", "flags", "the last key"],
)
def test_other_masks_are_no_triangles(mask: Tensor) -> None:
    assert dropped(mask, add) == ("mask",)


def test_a_table_that_is_read_at_triangular_places_is_a_bias() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.table = nn.Linear(8, 24), nn.Parameter(torch.randn(16))
            self.register_buffer("index", (PLACE[:, None] - PLACE).clamp_min(0))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return add(q, k, v, self.table[self.index]).transpose(1, 2).flatten(2)

    model = token_net(Table())
    (site,) = [s for s in find_sites(Scene(model, probe(model, images()))) if s.kind == "attention"]
    assert site.attention is not None
    assert site.attention.dropped == ("bias",)


def test_a_causal_attention_in_front_says_nothing_about_the_next_one() -> None:
    def query_bias(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.mT + q @ mask[:4]).softmax(-1) @ v

    model = token_net(nn.Sequential(Masked(CAUSAL, add), Masked(torch.randn(16, 16), query_bias)))
    sites = [s for s in find_sites(Scene(model, probe(model, images()))) if s.kind == "attention"]
    assert [s.attention.dropped for s in sites if s.attention] == [("causal",), ("query_bias",)]


def test_a_causal_mask_in_a_buffer_is_refused_in_every_stage() -> None:
    keep_attention = {"match": {"kind": "attention"}, "operator": "keep"}
    for stages in ([[ATTENTION]], [[keep_attention, LINEAR], [ATTENTION]]):
        with pytest.raises(PlanError, match="it has a causal mask, which binary linear attention cannot express"):
            plan_for(token_net(Masked(LOWER, fill)), recipe(*stages))


def test_a_mask_of_a_model_without_values_is_taken_for_a_mask() -> None:
    model = token_net(Masked(LOWER, fill)).to("meta")
    (site,) = [s for s in find_sites(Scene(model, probe(model, images()))) if s.kind == "attention"]
    assert site.attention is not None
    assert site.attention.dropped == ("mask",)


def test_reading_a_mask_neither_changes_it_nor_draws_random_numbers() -> None:
    def noisy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        other = mask.clone().add_(torch.rand(16, 16, device=mask.device)).masked_fill_(mask < 0, -1.0)
        return add(q, k, v, other)

    torch.manual_seed(5)
    expected = torch.rand(3)
    attention = Masked(CAUSAL.clone(), noisy)
    model = token_net(attention)
    torch.manual_seed(5)
    assert len(find_sites(Scene(model, probe(model, images())))) > 0
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(attention.mask, CAUSAL)
