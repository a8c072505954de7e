"""The way from the two products of an attention to its softmax: what may stand on it, and which axis is which."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.graph.score_chain import chain_to_scores, chain_to_values, map_axes
from reparam.trace.probe import probe
from reparam.trace.record import Op, Trace

Core = Callable[["Scores", Tensor, Tensor, Tensor], Tensor]


class Scores(nn.Module):
    """Attention over (B, N, 8) in the spelling that it is given."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.qkv, self.core, self.mix = nn.Linear(8, 24), core, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(self, *self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4))


def trace_and_softmax(core: Core) -> tuple[Trace, Op]:
    trace = probe(Scores(core), torch.empty(3, 5, 8, device="meta"))
    return trace, next(op for op in trace.ops if op.name == "softmax")


@pytest.mark.parametrize(
    ("core", "before", "after"),
    [
        (lambda m, q, k, v: (q @ k.mT).softmax(-1) @ v, [], []),
        (lambda m, q, k, v: (q @ k.mT * 0.5).float().softmax(-1).to(v) @ v, ["mul", "float"], ["to"]),
        (lambda m, q, k, v: (0.5 * (q @ k.mT) + 1).softmax(-1).clone() @ v, ["mul", "add"], ["clone"]),
        (lambda m, q, k, v: (q @ k.mT).view(3, 2, 25).view(3, 2, 5, 5).softmax(-1) @ v, ["view", "view"], []),
        (lambda m, q, k, v: (q @ k.mT).div_(2).softmax(-1) @ v, ["div"], []),
    ],
)
def test_the_operations_on_the_way_come_in_order(core: Core, before: list[str], after: list[str]) -> None:
    trace, softmax = trace_and_softmax(core)
    back, forth = chain_to_scores(trace, softmax), chain_to_values(trace, softmax)
    assert back is not None
    assert forth is not None
    assert not isinstance(forth, str)
    assert [op.name for op in back.ops] == before
    assert [op.name for op in forth.ops] == after
    assert (back.product.inner, forth.product.inner) == ("c", "c")


@pytest.mark.parametrize(
    "core",
    [
        lambda m, q, k, v: (1 / (q @ k.mT)).softmax(-1) @ v,
        lambda m, q, k, v: torch.div(1.0, q @ k.mT).softmax(-1) @ v,
        lambda m, q, k, v: (q @ k.mT).flip(-1).softmax(-1) @ v,
        lambda m, q, k, v: (q @ k.mT)[..., :4].softmax(-1) @ v[:, :, :4],
        lambda m, q, k, v: q.softmax(-1),
        lambda m, q, k, v: torch.einsum("bhnd,bgmd->bhnm", q, k).softmax(-1) @ v,
    ],
    ids=["one over the scores", "one over them by name", "turned around", "cut", "no product", "summed twice"],
)
def test_other_operations_end_the_way_back(core: Core) -> None:
    assert chain_to_scores(*trace_and_softmax(core)) is None


@pytest.mark.parametrize(
    "core",
    [
        lambda m, q, k, v: (q @ k.mT).softmax(-1).sum(),
        lambda m, q, k, v: (1 / (q @ k.mT).softmax(-1)) @ v,
        lambda m, q, k, v: (q @ k.mT).softmax(-1).roll(1, -1) @ v,
    ],
    ids=["a sum", "one over the weights", "rolled"],
)
def test_other_operations_end_the_way_forth(core: Core) -> None:
    assert chain_to_values(*trace_and_softmax(core)) is None


def test_axes_are_followed_through_views_and_mixed_heads() -> None:
    def core(m: Scores, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = m.mix((q @ k.mT).permute(0, 2, 3, 1))  # (B, N, M, H)
        return (scores.softmax(2).permute(0, 3, 1, 2)) @ v

    trace, softmax = trace_and_softmax(core)
    back = chain_to_scores(trace, softmax)
    assert back is not None
    assert map_axes(back.ops, back.product.op.output, softmax.inputs[0]) == (0, 2, 3, 1)
    assert map_axes((), back.product.op.output, back.product.op.output) == (0, 1, 2, 3)
