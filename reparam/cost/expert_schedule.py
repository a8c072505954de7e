"""How long a model with mixtures takes with its experts one after the other, and if both ran at the same time.

Measured: the whole model, whose experts run one after the other, with the tokens shared as its routers share them in
the timed batch. Modelled, from the time that each expert takes for all tokens of that batch (`expert_latency.py`):

    sequential(s) = measured + sum over mixtures of (s * M + (1 - s) * S) - (r * M + (1 - r) * S)
    parallel(s)   = sequential(s) - sum over mixtures of min(s * M, (1 - s) * S)

M and S are the times of the multiply and of the shift expert for all tokens, s the share of tokens that is multiplied,
r the share that was multiplied in the timed batch. An expert's time is taken as proportional to its tokens, and what
runs at the same time as not slowed by it: `parallel` is what an ideal device would reach, no prediction for this one.

Source: ShiftAddViT, arXiv:2306.06446, reports latencies of mixtures with ideally parallel experts.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from reparam.cost.expert_latency import ExpertLatency
from reparam.modes import evaluating
from reparam.ops.routing import MULTIPLY, Router, Routing
from reparam.recipe.schema import Frozen

Shares = Literal["timed batch", "evaluated", "balanced"]


class ExpertSchedule(Frozen):
    """Milliseconds of one batch with the experts one after the other (sequential) and at the same time (parallel).

    `mult_share` is the mean share of tokens that is multiplied: in the timed batch, in the evaluation on record, or at
    the balanced load. `parallel_ms` is always modelled.
    """

    batch_size: int
    shares: Shares
    mult_share: float
    sequential_ms: float
    sequential: Literal["measured", "modelled"]
    parallel_ms: float
    parallel: Literal["modelled"] = "modelled"


def routed_shares(model: nn.Module, batch: Tensor) -> dict[str, float]:
    """Share of tokens that each router multiplies in this batch, by the router's path; leaves every mode as it is."""
    shares: dict[str, float] = {}

    def note(path: str, routing: Routing) -> None:
        shares[path] = float((routing.expert == MULTIPLY).float().mean())

    hooks = [
        router.register_forward_hook(lambda module, inputs, routing, path=path: note(path, routing))
        for path, router in _routers(model).items()
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return shares


def balanced_shares(model: nn.Module) -> dict[str, float]:
    """Share of tokens that each router would multiply if both experts finished together."""
    return {path: router.latency[1] / sum(router.latency) for path, router in _routers(model).items()}


def schedule(
    measured_ms: float,
    experts: Mapping[str, ExpertLatency],
    *,
    routed: Mapping[str, float],
    wanted: Mapping[Shares, Mapping[str, float]],
) -> tuple[ExpertSchedule, ...]:
    """Models both schedules, at the shares of the timed batch and at others.

    Args:
        measured_ms: latency of the whole model on the batch on which the experts were measured.
        experts: times of each mixture's experts, by the mixture's path.
        routed: share of tokens that each router multiplied in that batch, by the router's path.
        wanted: other shares; one that does not have every router is left out.
    """
    routers = {f"{path}.router" for path in experts}
    cases: dict[Shares, Mapping[str, float]] = {"timed batch": routed, **wanted}
    known = [(name, shares) for name, shares in cases.items() if routers <= shares.keys()]
    return tuple(_at(measured_ms, experts, routed, shares, name) for name, shares in known)


def _at(
    measured_ms: float,
    experts: Mapping[str, ExpertLatency],
    routed: Mapping[str, float],
    shares: Mapping[str, float],
    name: Shares,
) -> ExpertSchedule:
    sequential, saved, multiplied = measured_ms, 0.0, 0.0
    for path, figures in experts.items():
        share = shares[f"{path}.router"]
        times = share * figures.multiply_ms, (1 - share) * figures.shift_ms
        was = routed[f"{path}.router"]
        sequential += sum(times) - was * figures.multiply_ms - (1 - was) * figures.shift_ms
        saved += min(times)
        multiplied += share
    return ExpertSchedule(
        batch_size=next(iter(experts.values())).batch,
        shares=name,
        mult_share=multiplied / len(experts),
        sequential_ms=sequential,
        sequential="measured" if name == "timed batch" else "modelled",
        parallel_ms=sequential - saved,
    )


def _routers(model: nn.Module) -> dict[str, Router]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Router)}
