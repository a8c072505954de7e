"""What would vanish with a softmax is named; what the softmax undoes anyway is no loss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import PlanError
from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.ops.site import AttentionForm
from reparam.trace.probe import probe
from tests.pico import ATTENTION, images, plan_for, recipe, token_net

Core = Callable[["Written", Tensor, Tensor, Tensor, Tensor], Tensor]


class Written(nn.Module):
    """Attention over 16 tokens of width 8 in two heads, its core given; called with the scores and q, k, v."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.qkv, self.core = nn.Linear(8, 24), core
        self.table, self.mix = nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(2, 2))
        self.per_head, self.to_gate = nn.Parameter(torch.randn(2, 1, 1)), nn.Linear(4, 1)
        self.over_keys, self.conv = nn.Linear(16, 16), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.core(self, q @ k.mT, q, k, v).transpose(1, 2).flatten(2)


def form(core: Core) -> AttentionForm:
    model = token_net(Written(core))
    (site,) = [s for s in find_sites(Scene(model, probe(model, images()))) if s.kind == "attention"]
    assert site.attention is not None, site.refusal
    return site.attention


@pytest.mark.parametrize(
    ("core", "scale"),
    [
        (lambda m, s, q, k, v: (s * 0.5 / 2).softmax(-1) @ v, 0.25),
        (lambda m, s, q, k, v: (s + 3.0).softmax(-1) @ v, 1.0),
        (lambda m, s, q, k, v: (s - s.amax(-1, keepdim=True)).softmax(-1) @ v, 1.0),
        (lambda m, s, q, k, v: (s + q.sum(-1, keepdim=True)).softmax(-1) @ v, 1.0),
        (lambda m, s, q, k, v: (s + m.per_head).softmax(-1) @ v, 1.0),
        (lambda m, s, q, k, v: (s * m.per_head).softmax(-1) @ v, None),
        (lambda m, s, q, k, v: (lambda w: (w / w.sum(-1, keepdim=True)) @ v)(s.softmax(-1)), 1.0),
        (lambda m, s, q, k, v: (lambda w: w.div_(w.sum(-1, keepdim=True) + 1e-6) @ v)(s.softmax(-1)), 1.0),
        (lambda m, s, q, k, v: (-(q.square().sum(-1, keepdim=True) - 2 * s)).softmax(-1) @ v, 2.0),
    ],
    ids=[
        "scaled", "a number", "minus the maximum", "a term for each query", "a term for each head", "temperature",
        "normalised again", "normalised with an epsilon", "minus a difference",
    ],
)  # fmt: skip
def test_what_a_softmax_undoes_is_no_loss(core: Core, scale: float | None) -> None:
    found = form(core)
    assert (found.dropped, found.scale) == ((), scale)


@pytest.mark.parametrize(
    ("core", "dropped"),
    [
        (lambda m, s, q, k, v: (s + m.table).softmax(-1) @ v, ("bias",)),
        (lambda m, s, q, k, v: (s + k.sum(-1).unsqueeze(-2)).softmax(-1) @ v, ("query_bias",)),
        (lambda m, s, q, k, v: (s * s).softmax(-1) @ v, ("score_function",)),
        (lambda m, s, q, k, v: (s + 0.5 * s.tanh()).softmax(-1) @ v, ("score_function",)),
        (lambda m, s, q, k, v: (s * k.norm(dim=-1).unsqueeze(-2)).softmax(-1) @ v, ("score_function",)),
        (lambda m, s, q, k, v: (s.mT * k.norm(dim=-1, keepdim=True)).softmax(-2).mT @ v, ("score_function",)),
        (lambda m, s, q, k, v: torch.einsum("hg,bhnm->bgnm", m.mix, s).softmax(-1) @ v, ("talking_heads",)),
        (lambda m, s, q, k, v: m.over_keys(s).softmax(-1) @ v, ("mixture",)),
        (lambda m, s, q, k, v: (s.softmax(-1) @ m.table) @ v, ("mixture",)),
        (lambda m, s, q, k, v: (m.table @ s).softmax(-1) @ v, ("mixture",)),
        (lambda m, s, q, k, v: m.conv(s).softmax(-1) @ v, ("mixture",)),
        (lambda m, s, q, k, v: (1 - s.softmax(-1)) @ v, ("mixture",)),
        (lambda m, s, q, k, v: (-s.softmax(-1)) @ v, ("mixture",)),
        (lambda m, s, q, k, v: (s.softmax(-1) * 0.5) @ v, ("mixture",)),
        (lambda m, s, q, k, v: (s.softmax(-1) + 0.1) @ v, ("mixture",)),
        (lambda m, s, q, k, v: (s.softmax(-1) * m.to_gate(q).sigmoid()) @ v, ("mixture",)),
        (lambda m, s, q, k, v: (lambda w: (w / w.amax(-2, keepdim=True)) @ v)(s.softmax(-1)), ("mixture",)),
    ],
    ids=[
        "table", "a term for each key", "square", "itself", "a factor for each key", "a factor for each key in a row",
        "across heads", "layer over keys", "product over keys", "product over queries", "convolution", "one minus",
        "minus", "half", "plus", "gate", "over queries",
    ],
)  # fmt: skip
def test_what_a_core_cannot_do_is_named(core: Core, dropped: tuple[str, ...]) -> None:
    assert form(core).dropped == dropped


@pytest.mark.parametrize(
    ("core", "scale"),
    [
        (lambda m, s, q, k, v: (-s).softmax(-1) @ v, -1.0),
        (lambda m, s, q, k, v: (s * -0.5).softmax(-1) @ v, -0.5),
        (lambda m, s, q, k, v: (1.0 - s).softmax(-1) @ v, -1.0),
        (lambda m, s, q, k, v: torch.rsub(s, 1.0, alpha=2).softmax(-1) @ v, -2.0),
        (lambda m, s, q, k, v: torch.sub(m.per_head, s, alpha=2).softmax(-1) @ v, -2.0),
    ],
    ids=["minus", "factor", "one minus", "rsub", "subtracted"],
)
def test_scores_that_are_turned_around_are_refused(core: Core, scale: float) -> None:
    assert form(core).scale == scale
    with pytest.raises(PlanError, match=f"its scores are multiplied by {scale:g}, so that the least similar tokens"):
        plan_for(token_net(Written(core)), recipe([ATTENTION]))


def test_a_gate_on_the_weights_is_refused_unless_the_recipe_drops_it() -> None:
    model = token_net(Written(lambda m, s, q, k, v: (s.softmax(-1) * m.to_gate(q).sigmoid()) @ v))
    with pytest.raises(
        PlanError, match=r'or gated, which binary linear attention cannot express; add "mixture" to drop'
    ):
        plan_for(model, recipe([ATTENTION]))
    (step,) = plan_for(model, recipe([{**ATTENTION, "options": {"drop": ["mixture"]}}])).stages[0].steps
    assert "gated" in (step.remark or "")
