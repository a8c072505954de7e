"""Explanations of one module: verdicts by stage, the first test that failed, and rules that do what they promise."""

import tomllib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import ModelError
from reparam.graph.explain import explain_path
from reparam.graph.explanation import Explanation, Verdict
from reparam.graph.finders.base import Scene
from reparam.graph.records import Plan
from reparam.recipe.schema import OPERATOR_KEEP, Recipe, Rule
from reparam.trace.probe import probe
from tests.pico import ATTENTION, FULL, KEEP_HEAD, LINEAR, MLP, cnn, images, inline_net, plan_for, recipe, vit


def explained(
    model: nn.Module, path: str, wanted: Recipe = FULL, x: Any = None, **options: Any
) -> tuple[Explanation, Plan]:
    x = images() if x is None else x
    plan = plan_for(model, wanted, x, allow_partial=True)
    return explain_path(Scene(model, probe(model, x)), plan, path, **options), plan


def outcomes(explanation: Explanation) -> list[tuple[int, str, str | None]]:
    return [(verdict.stage, verdict.outcome, verdict.operator) for verdict in explanation.verdicts]


def pasted(wanted: Recipe, verdict: Verdict, number: int = 0) -> Recipe:
    """The recipe with the rules of one change where its text says they go."""
    change = verdict.changes[number]
    assert change.toml is not None
    written = tomllib.loads(f'[[stage]]\nname = "pasted"\n{change.toml}')
    rules = [Rule.model_validate(table) for table in written["stage"][0]["rule"]]
    at = int(change.text.rpartition("rule ")[2]) if "rule " in change.text else 0
    stages = list(wanted.stages)
    old = stages[verdict.stage]
    rest = old.rules[at + ("in place of" in change.text) :]
    stages[verdict.stage] = old.model_copy(update={"rules": (*old.rules[:at], *rules, *rest)})
    return wanted.model_copy(update={"stages": tuple(stages)})


def test_a_converted_module_is_told_the_rule_and_that_later_stages_find_it_converted() -> None:
    explanation, plan = explained(vit(), "blocks.0.attn")
    assert outcomes(explanation) == [
        (0, "becomes", "binary_linear_attention"),
        (1, "became", "binary_linear_attention"),
    ]
    first = explanation.verdicts[0]
    assert (first.rule, first.options) == ("stage 0, rule 0", plan.steps[0].options)
    assert "heads 2, channels per head 8" in explanation.facts
    assert "token grid 4 x 4 after 1 class or register tokens" in explanation.facts
    assert explanation.parts == {"linear": ("blocks.0.attn.qkv", "blocks.0.attn.proj")}
    assert explanation.no_site == {}


def test_the_rule_that_keeps_a_converted_module_keeps_it_and_nothing_else() -> None:
    explanation, plan = explained(vit(), "blocks.0.attn")
    kept = plan_for(vit(), pasted(FULL, explanation.verdicts[0]), images())
    assert {s.site.path for s in plan.steps} - {s.site.path for s in kept.steps} == {"blocks.0.attn"}


def test_a_module_that_a_rule_keeps_is_told_its_reason_and_a_rule_that_converts_it() -> None:
    head = {**KEEP_HEAD, "reason": "it is small"}
    wanted = recipe([head, LINEAR])
    explanation, plan = explained(vit(), "head", wanted)
    (verdict,) = explanation.verdicts
    assert (verdict.outcome, verdict.reason, verdict.rule) == ("keep", "it is small", "stage 0, rule 0")
    assert verdict.changes[0].text == "to make it shift_linear, put this in place of stage 0, rule 0"
    changed = plan_for(vit(), pasted(wanted, verdict), images(), allow_partial=True)
    assert {s.site.path for s in changed.steps} - {s.site.path for s in plan.steps} == {"head"}


def test_a_module_that_no_rule_picks_is_told_the_first_field_that_fails() -> None:
    explanation, _ = explained(vit(), "head", recipe([ATTENTION], [{**LINEAR, "match": {"within": "attention"}}]))
    first, second = explanation.verdicts
    assert (first.outcome, first.missed, second.outcome) == ("no rule", {}, "no rule")
    wants = 'it wants within = "attention", and this lies within no attention and no mlp'
    assert second.missed == {"stage 1, rule 0": wants}
    assert first.changes != ()
    assert second.changes == ()


def test_a_stage_that_leaves_a_module_to_another_gives_no_advice() -> None:
    explanation, _ = explained(vit(), "blocks.0.attn.qkv")
    assert outcomes(explanation) == [(0, "no rule", None), (1, "becomes", "shift_linear")]
    assert explanation.verdicts[0].changes == ()


def test_a_part_of_a_converted_module_is_told_which_and_how_to_convert_it_alone() -> None:
    explanation, _ = explained(vit(), "blocks.0.mlp.fc1")
    verdict = explanation.verdicts[1]
    assert verdict.outcome == "inside"
    assert verdict.reason == 'a part of "blocks.0.mlp", which becomes moe_mlp'
    assert explanation.within == 'mlp "blocks.0.mlp"'
    fates = {s.site.path: s.operator for s in plan_for(vit(), pasted(FULL, verdict), images()).steps}
    assert fates["blocks.0.mlp.fc1"] == "shift_linear"
    assert not {"blocks.0.mlp", "blocks.0.mlp.fc2"} & set(fates)


def test_a_module_inside_a_converted_one_that_is_no_site_is_told_too() -> None:
    explanation, _ = explained(vit(), "blocks.0.mlp.act")
    (verdict,) = explanation.verdicts
    assert (verdict.stage, verdict.outcome, verdict.operator) == (1, "inside", "moe_mlp")


def test_what_lies_in_a_converted_attention_keeps_its_own_fate() -> None:
    dropout, _ = explained(vit(), "blocks.0.attn.attn_drop")
    assert (dropout.verdicts, dropout.within) == ((), 'attention "blocks.0.attn"')
    keeps = recipe([ATTENTION, {**KEEP_HEAD, "match": {"path": "*.qkv"}}, LINEAR])
    layer, _ = explained(vit(), "blocks.0.attn.qkv", keeps)
    assert [change.text for change in layer.verdicts[0].changes] == [
        "to make it shift_linear, put this before stage 0, rule 1"
    ]


class Written(nn.Module):
    """A block whose MLP is lines of its forward, beside torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


def test_an_mlp_in_the_lines_of_a_forward_takes_its_own_layers_and_no_others() -> None:
    model, x = Written().eval(), torch.zeros(2, 5, 8)
    layer, _ = explained(model, "fc1", recipe([MLP]), x)
    assert (outcomes(layer), layer.within) == ([(0, "inside", None)], "mlp of the model itself")
    other, _ = explained(model, "norm", recipe([MLP]), x)
    assert (other.verdicts, other.within) == ((), None)


def test_a_site_that_a_later_stage_converts_gets_its_advice_there() -> None:
    model, x = Written().eval(), torch.zeros(2, 5, 8)
    explanation, _ = explained(model, "attn.out_proj", recipe([ATTENTION], [LINEAR]), x)
    assert [(v.outcome, len(v.changes)) for v in explanation.verdicts] == [("inside", 0), ("becomes", 1)]


class Shares(nn.Module):
    """Two layers with one weight, and one that runs no more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.spare = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_a_refused_module_is_told_the_test_that_failed_and_three_ways_on() -> None:
    wanted = recipe([LINEAR])
    explanation, _ = explained(Shares(), "first", wanted, torch.zeros(2, 4))
    (verdict,) = explanation.verdicts
    assert (verdict.outcome, verdict.rule) == ("refused", "stage 0, rule 0")
    assert verdict.reason == 'its weight is shared with "second", which would stay dense'
    assert "shares parameters with second" in explanation.facts
    assert [change.text for change in verdict.changes] == [
        "to accept that it stays, put this before stage 0, rule 0",
        'or pass --allow-partial, or add on_refusal = "keep" to stage 0, rule 0',
    ]
    kept = plan_for(Shares(), pasted(wanted, verdict), torch.zeros(2, 4), allow_partial=True)
    assert {s.site.path: s.cause for s in kept.stages[0].skips}["first"] == "keep"


def test_a_refusal_that_the_rule_accepts_needs_no_change() -> None:
    lenient = recipe([{**LINEAR, "on_refusal": "keep"}])
    explanation, _ = explained(Shares(), "first", lenient, torch.zeros(2, 4))
    assert [(v.outcome, v.changes) for v in explanation.verdicts] == [("refused", ())]


def test_a_layer_that_did_not_run_is_idle_and_unseen() -> None:
    explanation, _ = explained(Shares(), "spare", recipe([LINEAR]), torch.zeros(2, 4))
    assert [verdict.outcome for verdict in explanation.verdicts] == ["idle"]
    assert explanation.unseen == ("it did not run on the example input, so nothing is known of what its forward does",)


def test_a_kept_convolution_is_told_what_would_convert_it() -> None:
    explanation, _ = explained(cnn(), "0", recipe([{**KEEP_HEAD, "match": {"kind": "conv2d"}}]))
    (verdict,) = explanation.verdicts
    assert verdict.outcome == "keep"
    ((text, toml),) = [(change.text, change.toml) for change in verdict.changes]
    assert text == "to make it adder_conv2d, put this before stage 0, rule 0"
    assert toml == '[[stage.rule]]\nmatch = { path = "0" }\noperator = "adder_conv2d"'


def test_an_untouched_module_is_told_for_each_kind_the_first_test_that_failed() -> None:
    explanation, _ = explained(vit(), "blocks.0.norm1")
    assert explanation.verdicts == explanation.sites == ()
    assert list(explanation.no_site) == ["attention", "mlp", "linear", "conv2d"]
    assert explanation.no_site["linear"] == "its class is LayerNorm, not torch.nn.Linear"
    assert all(explanation.no_site.values())


def test_a_block_lists_the_sites_inside_it() -> None:
    explanation, _ = explained(vit(), "blocks.1", FULL)
    assert explanation.parts["attention"] == ("blocks.1.attn",)
    assert explanation.parts["mlp"] == ("blocks.1.mlp",)
    assert set(explanation.no_site) >= {"mlp", "linear", "conv2d"}


def test_a_parameter_stands_for_its_owner_and_a_second_name_for_the_first() -> None:
    assert explained(vit(), "blocks.0.attn.qkv.weight")[0].path == "blocks.0.attn.qkv"
    shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    shared.append(shared[0])
    assert explained(shared, "2", recipe([LINEAR]), torch.zeros(2, 4))[0].path == "0"


def test_of_a_pattern_the_first_is_explained_and_its_rule_takes_all_that_are_alike() -> None:
    explanation, _ = explained(inline_net(), "blocks.?.mlp.0", recipe([LINEAR]))
    assert (explanation.path, explanation.alike, explanation.others) == ("blocks.0.mlp.0", ("blocks.1.mlp.0",), ())
    wanted = recipe([{"operator": OPERATOR_KEEP}])
    kept, _ = explained(inline_net(), "blocks.?.mlp.0", wanted)
    steps = plan_for(inline_net(), pasted(wanted, kept.verdicts[0]), images()).steps
    assert [step.site.path for step in steps] == ["blocks.0.mlp.0", "blocks.1.mlp.0"]


def test_modules_of_a_pattern_with_another_fate_or_class_are_told_apart() -> None:
    first = {**LINEAR, "match": {"path": "blocks.0.*"}}
    explanation, _ = explained(vit(), "re:blocks\\..\\.(mlp\\.fc1|norm1)", recipe([first]))
    assert explanation.path == "blocks.0.norm1"
    assert explanation.alike == ("blocks.1.norm1",)
    assert explanation.others == ("blocks.0.mlp.fc1", "blocks.1.mlp.fc1")
    other, _ = explained(vit(), "blocks.*.mlp.fc1", recipe([first]))
    assert other.others == ("blocks.1.mlp.fc1",)


def test_a_name_with_the_letters_of_a_pattern_is_matched_as_it_stands() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({"a[0]": nn.Linear(4, 4), "a0": nn.Linear(4, 4)})

        def forward(self, x: Tensor) -> Tensor:
            return self.layers["a0"](self.layers["a[0]"](x))

    wanted = recipe([LINEAR])
    explanation, _ = explained(Odd(), "layers.a[0]", wanted, torch.zeros(2, 4))
    kept = plan_for(Odd(), pasted(wanted, explanation.verdicts[0]), torch.zeros(2, 4))
    assert [step.site.path for step in kept.steps] == ["layers.a0"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("blocks.0.atn", 'has no module or parameter "blocks.0.atn". Did you mean "blocks.0.attn"'),
        ("quite.else", 'has no module or parameter "quite.else". At its top: patch_embed,'),
        ("zzz.*", 'has no module that fits "zzz.*". At its top: patch_embed,'),
    ],
)
def test_an_unknown_path_names_close_ones(asked: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        explained(vit(), asked)
    assert message in str(caught.value)


def test_an_explanation_is_the_same_after_json() -> None:
    explanation, _ = explained(vit(), "blocks.*.attn", recipe([ATTENTION, MLP]))
    assert Explanation.model_validate_json(explanation.model_dump_json()) == explanation
