"""Latencies in a plan: replaced by place, kept by JSON, and built into the routers of whoever is rewritten by it."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from reparam.graph.explain import explain_path
from reparam.graph.finders.base import Scene
from reparam.graph.latencies import recipe_latencies, with_latencies
from reparam.graph.records import Plan
from reparam.graph.rewrite import rewrite
from reparam.ops.moe import MoeMlp
from reparam.ops.routing import Router
from reparam.trace.probe import probe
from tests.pico import ATTENTION, FULL, MLP, images, plan_for, recipe, token_net, vit

MEASURED = {("blocks.0.mlp", 0): (3.21, 1 / 3), ("blocks.1.mlp", 0): (0.1 + 0.2, 7.0)}


def latencies(model: Any) -> dict[str, tuple[float, float]]:
    return {name: module.latency for name, module in model.named_modules() if isinstance(module, Router)}


def test_a_model_that_is_rewritten_by_the_plan_has_routers_of_these_latencies() -> None:
    plan = with_latencies(plan_for(vit(), FULL), MEASURED)
    model = rewrite(vit(), plan, images())
    assert latencies(model) == {f"{path}.router": pair for (path, _), pair in MEASURED.items()}


def test_the_plan_keeps_them_bit_by_bit_through_json_and_changes_in_nothing_else() -> None:
    before = plan_for(vit(), FULL)
    plan = with_latencies(before, MEASURED)
    assert Plan.model_validate_json(plan.model_dump_json()) == Plan.model_validate(plan.model_dump(mode="json"))
    read = Plan.model_validate_json(plan.model_dump_json())
    assert with_latencies(read, MEASURED) == read == plan
    told = [step for step in plan.steps if step.operator == "moe_mlp"]
    assert [tuple(step.options["latency"]) for step in told] == list(MEASURED.values())
    assert with_latencies(plan, dict.fromkeys(MEASURED, (0.6, 0.4))) == before


def test_places_without_a_mixture_and_mixtures_without_a_latency_stay() -> None:
    plan = plan_for(vit(), FULL)
    assert with_latencies(plan, {("blocks.0.attn", 0): (1.0, 2.0), ("nowhere", 0): (1.0, 2.0)}) == plan


class Written(nn.Module):
    """Two MLPs whose layers are its own children."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.b(F.gelu(self.a(x))))
        return x + self.d(F.gelu(self.c(x)))


def test_an_mlp_without_a_module_of_its_own_is_found_by_the_place_that_its_operator_knows() -> None:
    plan = plan_for(token_net(Written()), recipe([MLP]))
    model = rewrite(token_net(Written()), plan, images())
    places = [module.place for module in model.modules() if isinstance(module, MoeMlp)]
    wanted = dict(zip(places, ((2.0, 1.0), (3.0, 1.0)), strict=True))
    changed = rewrite(token_net(Written()), with_latencies(plan, wanted), images())
    assert len({path for path, _ in places}) == 1
    assert list(latencies(changed).values()) == list(wanted.values())


def test_the_recipe_s_latencies_are_those_of_its_rules_whatever_the_plan_says_now() -> None:
    first = {**MLP, "match": {"path": "blocks.0.*"}, "options": {"latency": [3, 1]}}
    plan = plan_for(vit(), recipe([ATTENTION], [first, MLP]))
    told = {("blocks.0.mlp", 0): (3.0, 1.0), ("blocks.1.mlp", 0): (0.6, 0.4)}
    assert recipe_latencies(plan) == told
    assert recipe_latencies(with_latencies(plan, MEASURED)) == told


def test_an_explanation_shows_the_new_latencies() -> None:
    model, x = vit(), images()
    plan = with_latencies(plan_for(model, recipe([MLP])), MEASURED)
    (verdict,) = explain_path(Scene(model, probe(model, x)), plan, "blocks.1.mlp").verdicts
    assert verdict.operator == "moe_mlp"
    assert tuple(verdict.options["latency"]) == MEASURED["blocks.1.mlp", 0]
