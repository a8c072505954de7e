import pytest

from reparam.graph.records import Plan, Skip, StagePlan, Step, Totals
from reparam.ops.site import Site
from reparam.survey.fates import folded, is_mathematical, tally_plan
from tests.pico import ATTENTION, KEEP_HEAD, LINEAR, MLP, plan_for, recipe, vit

EMPTY = Totals(parameters=0, operations={})


def site(path: str, kind: str = "attention", *, number: int = 0) -> Site:
    made = Site(path=path, kind="attention", type="T", input_shape=(1,), output_shape=(1,), number=number)
    return made.model_copy(update={"kind": kind})


def step(where: Site) -> Step:
    return Step(site=where, operator="binary_linear_attention", options={}, rule="stage 0, rule 0")


def plan_of(*stages: tuple[list[Step], list[Skip]]) -> Plan:
    made = tuple(StagePlan(name=str(i), steps=tuple(a), skips=tuple(b)) for i, (a, b) in enumerate(stages))
    return Plan(recipe=recipe([]), fingerprint="", input_shape=(1,), stages=made, before=EMPTY, after=EMPTY)


def test_a_pico_vit_is_counted_by_hand() -> None:
    plan = plan_for(vit(), recipe([ATTENTION], [KEEP_HEAD, {**LINEAR, "match": {"path": "*.qkv"}}, MLP]))
    tallies, reasons = tally_plan(plan)
    counted = {tally.kind: (tally.found, tally.fates) for tally in tallies}
    assert counted == {
        "attention": (2, {"converted": 2}),
        "conv2d": (1, {"no rule": 1}),
        "linear": (9, {"converted": 2, "inside": 4, "keep": 1, "no rule": 2}),
        "mlp": (2, {"converted": 2}),
    }
    assert [(r.kind, r.fate, r.count, r.example) for r in reasons] == [("linear", "keep", 1, "head")]


def test_a_site_that_any_stage_converts_is_converted_once() -> None:
    late = site("late")
    plan = plan_of(([], [Skip(site=late, cause="no rule", reason="no rule picks it")]), ([step(late)], []))
    (tally,), reasons = tally_plan(plan)
    assert (tally.found, tally.fates, reasons) == (1, {"converted": 1}, ())


def test_a_refusal_outlives_the_stage_that_does_not_ask_for_the_site() -> None:
    refused = Skip(site=site("attn"), cause="refused", reason="it is causal")
    unasked = Skip(site=site("attn"), cause="no rule", reason="no rule picks it")
    (tally,), (reason,) = tally_plan(plan_of(([], [refused]), ([], [unasked])))
    assert (tally.fates, reason.reason, reason.count) == ({"refused": 1}, "it is causal", 1)


def test_several_cores_of_one_module_are_several_sites() -> None:
    (tally,), _ = tally_plan(plan_of(([step(site("attn", number=0)), step(site("attn", number=1))], [])))
    assert tally.found == 2


def test_reasons_that_differ_in_numbers_are_one_and_others_are_not() -> None:
    skips = [
        Skip(site=site(f"blocks.{i}"), cause="refused", reason=reason)
        for i, reason in enumerate(["49 queries, 9.5 keys", "196 queries, 7 keys", "no queries"])
    ]
    _, reasons = tally_plan(plan_of(([], skips)))
    assert [(r.reason, r.count, r.example) for r in reasons] == [
        ("N queries, N keys", 2, "blocks.0"),
        ("no queries", 1, "blocks.2"),
    ]


@pytest.mark.parametrize(
    "reason",
    [
        "it attends over channels (cross-covariance), so it is already linear in the tokens",
        "there is one query, so the attention is already linear in the tokens",
        "it attends across the batch: its scores have no axis of queries or none of keys",
        "its weights are a difference of two softmaxes (differential attention)",
    ],
)
def test_a_property_of_the_attention_itself_is_mathematical(reason: str) -> None:
    assert is_mathematical(folded(reason))


@pytest.mark.parametrize("reason", ["its forward cannot be traced", "it is causal", "the recipe keeps it", ""])
def test_a_limit_of_reparam_is_not_mathematical(reason: str) -> None:
    assert not is_mathematical(reason)
