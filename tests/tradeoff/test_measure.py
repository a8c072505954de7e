import copy
import math

import pytest
import torch
from torch import nn

from reparam.errors import ModelError, PlanError
from reparam.graph.rewrite import rewrite
from reparam.ops.moe import MoeMlp
from reparam.recipe.load import load_recipe
from reparam.trace.probe import probe
from reparam.tradeoff.choices import Choice, find_choices
from reparam.tradeoff.convert_one import ALL_SHIFTED, convert_one, routing_of
from reparam.tradeoff.cuts import find_cuts
from reparam.tradeoff.evaluations import Evaluations
from reparam.tradeoff.measure import Dense, count, figures, in_order, mean_kl, measure, place, top1
from reparam.tradeoff.records import SiteSensitivity
from tests.custom.models import EncoderNet
from tests.pico import cnn, images, recipe, vit
from tests.tradeoff.models import batches, lively

EXAMPLE = images()
SHIFTADDVIT = load_recipe("shiftaddvit")
LINEAR = recipe([{"match": {"kind": "linear"}, "operator": "shift_linear"}])
FOUR_BITS = recipe([{"match": {"kind": "linear"}, "operator": "shift_linear", "options": {"bits": 4}}])


def measured(dense: nn.Module, choices: list[Choice]) -> tuple[Dense, list[SiteSensitivity]]:
    trace, data = probe(dense, EXAMPLE), batches(16, 9)
    here = torch.device("cpu")
    evaluations = Evaluations(dense, data, limit=25, cuts=find_cuts(trace), memory=1e9, device=here)  # type: ignore[arg-type]
    ordered = in_order(choices, trace)
    cuts = place(ordered, trace, evaluations)
    answers = evaluations.dense_answers(cuts[ordered[0].key])
    whole = Dense(model=dense, example_input=EXAMPLE, counts=count(dense, trace), answers=answers)
    return whole, list(measure(whole, ordered, evaluations, cuts))


def test_divergence_is_the_sum_of_p_log_p_over_q_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, other = (torch.randn(7, 5, generator=generator) for _ in range(2))
    rows = []
    for p, q in zip(dense.double().softmax(1).tolist(), other.double().softmax(1).tolist(), strict=True):
        rows.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert mean_kl(dense, other) == pytest.approx(sum(rows) / len(rows), rel=1e-12)
    assert mean_kl(dense, other) != pytest.approx(mean_kl(other, dense))
    assert mean_kl(dense, dense + 3) == pytest.approx(0, abs=1e-12)


def test_a_site_whose_answers_are_not_finite_is_named_and_never_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = lively(vit)
    choices = list(find_choices(dense, [LINEAR], EXAMPLE).choices)
    everywhere = torch.full((9, 3), torch.nan)
    monkeypatch.setattr("reparam.tradeoff.evaluations.Evaluations.logits", lambda self, model, cut: everywhere)
    with pytest.raises(ModelError, match=r"with shift_linear there, logits are not finite"):
        measured(dense, choices)


def test_accuracy_is_in_percent() -> None:
    assert top1(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75


def test_every_figure_is_that_of_a_whole_evaluation_of_the_model_with_one_site_converted() -> None:
    dense = lively(vit)
    choices = list(find_choices(dense, [SHIFTADDVIT], EXAMPLE).choices)
    whole, sites = measured(dense, choices)
    labels = torch.cat([labels for _, labels in batches(16, 9)])
    by_place = {(choice.path, choice.step.operator): choice for choice in choices}
    assert len(sites) == len(choices) == 8  # in both blocks: attention, two layers, an MLP
    for site in sites:
        model = convert_one(dense, by_place[site.path, site.operator], EXAMPLE)
        with torch.no_grad():
            logits = torch.cat([model(x) for x, _ in batches(16, 9)])
        assert site.top1 == 100 * sum((logits.argmax(1) == labels).tolist()) / 25
        assert site.top1_drop == whole.top1 - site.top1
        assert site.kl == mean_kl(whole.answers.logits, logits)
    assert len({site.kl for site in sites}) == len(sites)


def test_the_sites_of_later_blocks_begin_at_their_block() -> None:
    _, sites = measured(lively(vit), list(find_choices(vit(), [SHIFTADDVIT], EXAMPLE).choices))
    assert {site.began_at for site in sites if site.path.startswith("blocks.1")} == {"blocks.1"}


def test_counts_change_by_what_the_whole_conversion_changes() -> None:
    dense = lively(vit)
    found = find_choices(dense, [LINEAR], EXAMPLE)
    whole, sites = measured(dense, list(found.choices))
    plan = found.choices[0].plan
    everything = rewrite(copy.deepcopy(dense), plan, EXAMPLE)
    after = count(everything, probe(everything, EXAMPLE))
    keys = {*after.operations, *whole.counts.operations}
    summed = {key: sum(site.operations_change.get(key, 0) for site in sites) for key in keys}
    assert summed == {key: after.operations.get(key, 0) - whole.counts.operations.get(key, 0) for key in keys}
    assert sum(site.parameters_change for site in sites) == after.parameters - whole.counts.parameters
    assert figures(whole).images == 25


def test_experts_are_measured_with_all_tokens_shifted() -> None:
    dense = lively(vit)
    mixtures = [c for c in find_choices(dense, [SHIFTADDVIT], EXAMPLE).choices if c.step.operator == "moe_mlp"]
    _, sites = measured(dense, mixtures)
    for choice, site in zip(in_order(mixtures, probe(dense, EXAMPLE)), sites, strict=True):
        model = copy.deepcopy(dense)
        mixture = convert_one(dense, choice, EXAMPLE).get_submodule(choice.path)
        assert isinstance(mixture, MoeMlp)
        model.set_submodule(choice.path, mixture.shift)
        with torch.no_grad():
            shifted = torch.cat([model.eval()(x) for x, _ in batches(16, 9)])
            dense_logits = torch.cat([dense(x) for x, _ in batches(16, 9)])
        assert site.kl == pytest.approx(mean_kl(dense_logits, shifted), rel=1e-4)
        assert site.kl > 0
        assert site.routing == ALL_SHIFTED


@pytest.mark.parametrize("gate", ["straight_through", "probability", "one"])
def test_the_gate_of_a_mixture_that_sends_all_tokens_one_way_is_one(gate: str) -> None:
    dense = lively(vit)
    wanted = recipe([{"match": {"kind": "mlp"}, "operator": "moe_mlp", "options": {"gate": gate}}])
    choice = find_choices(dense, [wanted], EXAMPLE).choices[0]
    mixture = convert_one(dense, choice, EXAMPLE).get_submodule(choice.path)
    assert isinstance(mixture, MoeMlp)
    tokens = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) * 100
    with torch.no_grad():
        routing = mixture.router(tokens)
    assert routing.expert.tolist() == [1] * 5
    assert routing.gate.flatten().tolist() == [1.0] * 5


def test_only_one_site_is_converted_and_the_dense_model_stays() -> None:
    dense = lively(vit)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    for choice in find_choices(dense, [SHIFTADDVIT], EXAMPLE).choices:
        model = convert_one(dense, choice, EXAMPLE)
        changed = [path for path, module in model.named_modules() if type(module) is not _type_in(dense, path)]
        assert changed
        assert all(path == choice.path or path.startswith(f"{choice.path}.") for path in changed)
        assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert routing_of(dense) is None


def test_sites_of_later_stages_are_converted_without_the_stages_before() -> None:
    found = find_choices(vit(), [SHIFTADDVIT], EXAMPLE)
    kinds = {
        choice.stage: {c.step.site.kind for c in found.choices if c.stage == choice.stage} for choice in found.choices
    }
    assert kinds == {"attention": {"attention"}, "experts": {"linear", "mlp"}}
    assert {site.path: site.cause for site in found.others if site.kind == "linear"}["head"] == "keep"


def test_what_only_an_earlier_stage_makes_is_listed() -> None:
    found = find_choices(EncoderNet(), [SHIFTADDVIT], images())
    later = [site for site in found.others if site.cause == "later"]
    assert later
    assert all('stage "experts"' in site.reason for site in later)


def test_several_recipes_give_several_choices_and_equal_ones_are_one() -> None:
    found = find_choices(vit(), [LINEAR, FOUR_BITS, LINEAR], EXAMPLE)
    bits = sorted((choice.path, choice.step.options["bits"]) for choice in found.choices)
    paths = sorted({path for path, _ in bits})
    assert bits == sorted((path, n) for path in paths for n in (4, 5))


def test_a_module_that_is_swapped_takes_the_sites_inside_along() -> None:
    both = recipe(
        [{"match": {"kind": "mlp"}, "operator": "moe_mlp"}], [{"match": {"kind": "linear"}, "operator": "shift_linear"}]
    )
    choices = find_choices(vit(), [both], EXAMPLE).choices
    along = {choice.path: set(choice.takes_along) for choice in choices}
    assert along["blocks.0.mlp"] == {"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}
    assert along["blocks.0.mlp.fc1"] == set()


def test_a_recipe_that_could_not_be_planned_is_refused_in_its_own_words() -> None:
    with pytest.raises(PlanError, match="matches no site"):
        find_choices(
            cnn(), [recipe([{"match": {"kind": "attention"}, "operator": "binary_linear_attention"}])], EXAMPLE
        )


def test_a_recipe_that_converts_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="nothing to measure"):
        find_choices(vit(), [load_recipe("none")], EXAMPLE)


def _type_in(model: nn.Module, path: str) -> type | None:
    return type(dict(model.named_modules())[path]) if path in dict(model.named_modules()) else None
