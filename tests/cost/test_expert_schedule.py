"""Schedules against sums made by hand, and shares against routers whose answer is known."""

import pytest
import torch
from torch import nn

from reparam.cost.expert_latency import ExpertLatency
from reparam.cost.expert_schedule import balanced_shares, routed_shares, schedule
from reparam.ops.routing import Router
from tests.pico import MLP, convert, images, recipe, vit


def figures(multiply: float, shift: float) -> ExpertLatency:
    times = {"multiply_ms": multiply, "multiply_iqr_ms": 0.0, "shift_ms": shift, "shift_iqr_ms": 0.0}
    return ExpertLatency(tokens=34, batch=2, threads=1, device="cpu", **times)


EXPERTS = {"a": figures(10.0, 20.0), "b": figures(8.0, 4.0)}
ROUTED = {"a.router": 0.5, "b.router": 1.0}


def test_parallel_experts_save_the_shorter_time_of_each_mixture() -> None:
    (row,) = schedule(100.0, EXPERTS, routed=ROUTED, wanted={})
    # a: 5 ms beside 10 ms; b: 8 ms beside nothing.
    assert (row.shares, row.sequential_ms, row.sequential) == ("timed batch", 100.0, "measured")
    assert (row.parallel_ms, row.parallel) == (95.0, "modelled")
    assert (row.mult_share, row.batch_size) == (0.75, 2)


def test_at_other_shares_the_sequential_time_is_modelled_too() -> None:
    wanted = {"a.router": 0.0, "b.router": 0.25}
    _, row = schedule(100.0, EXPERTS, routed=ROUTED, wanted={"evaluated": wanted})
    # a: 20 instead of 15; b: 2 + 3 instead of 8, of which 2 are hidden.
    assert (row.shares, row.sequential) == ("evaluated", "modelled")
    assert row.sequential_ms == pytest.approx(100 + 5 - 3)
    assert row.parallel_ms == pytest.approx(102 - 2)


def test_shares_that_lack_a_router_are_left_out() -> None:
    rows = schedule(1.0, EXPERTS, routed=ROUTED, wanted={"evaluated": {"a.router": 0.5}, "balanced": ROUTED})
    assert [row.shares for row in rows] == ["timed batch", "balanced"]


def test_shares_are_those_of_the_batch_and_nothing_of_the_model_changes() -> None:
    model = convert(vit(), recipe([MLP])).train()
    first, second = (module for module in model.modules() if isinstance(module, Router))
    with torch.no_grad():
        second.weight.copy_(torch.tensor([[-1.0], [1.0]]) * torch.ones(16))
    model.blocks[1].mlp.router.register_forward_hook(lambda module, inputs, routing: seen.append(routing.expert))
    seen: list[torch.Tensor] = []
    hooks = len(first._forward_hooks), len(second._forward_hooks)
    shares = routed_shares(model, images(3))
    multiplied = float((seen[0] == 0).float().mean())
    assert shares == {"blocks.0.mlp.router": 1.0, "blocks.1.mlp.router": pytest.approx(multiplied)}
    assert 0 < multiplied < 1
    assert model.training
    assert (len(first._forward_hooks), len(second._forward_hooks)) == hooks


def test_the_balanced_share_is_inversely_proportional_to_the_latency() -> None:
    model = convert(vit(), recipe([{**MLP, "options": {"latency": (3.0, 1.0)}}]))
    assert set(balanced_shares(model).values()) == {0.25}
    assert balanced_shares(nn.Linear(2, 2)) == {}
