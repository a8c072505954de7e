"""What a plan promises: every site has one fate and a reason, faults come all at once, and the model is not touched."""

import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import PlanError
from reparam.graph.plan import make_plan
from reparam.graph.records import IDLE, UNREAD, Plan, Totals
from reparam.recipe.load import load_recipe
from reparam.recipe.schema import Recipe
from tests.pico import (
    ATTENTION,
    FULL,
    KEEP_HEAD,
    LINEAR,
    MLP,
    Attention,
    cnn,
    convert,
    images,
    inline_net,
    plan_for,
    recipe,
    site_of,
    token_net,
    vit,
)


def paths(records: Any) -> list[str]:
    return [record.site.path for record in records]


def test_the_default_recipe_takes_each_core_each_mlp_and_each_projection_of_a_vit() -> None:
    plan = plan_for(vit(), load_recipe("shiftaddvit"))
    assert Counter((step.operator, stage.name) for stage in plan.stages for step in stage.steps) == {
        ("binary_linear_attention", "attention"): 2,
        ("shift_linear", "experts"): 4,
        ("moe_mlp", "experts"): 2,
    }


@pytest.mark.parametrize(
    ("model", "wanted"),
    [(vit(), FULL), (vit(distilled=True), FULL), (inline_net(), FULL), (vit(), load_recipe("none"))],
    ids=["vit", "deit", "custom", "none"],
)
def test_every_linear_layer_is_in_exactly_one_step_or_skip_of_each_stage(model: nn.Module, wanted: Recipe) -> None:
    linears = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    plan = plan_for(model, wanted)
    for stage in plan.stages:
        listed = Counter(r.site.path for r in (*stage.steps, *stage.skips) if r.site.kind == "linear")
        assert listed == Counter(linears)


def test_layers_inside_a_converted_mlp_say_so_and_layers_of_an_attention_stay_free() -> None:
    stage = plan_for(vit(), recipe([ATTENTION, MLP, LINEAR])).stages[0]
    inside = [skip for skip in stage.skips if skip.cause == "inside"]
    assert paths(inside) == [f"blocks.{i}.mlp.{fc}" for i in (0, 1) for fc in ("fc1", "fc2")]
    assert inside[0].reason == 'a part of "blocks.0.mlp", which becomes moe_mlp'
    assert {"blocks.0.attn", "blocks.0.attn.qkv", "blocks.0.attn.proj", "head"} <= set(paths(stage.steps))


def test_the_first_rule_that_matches_wins_and_is_named() -> None:
    first = {**LINEAR, "match": {"path": "*.fc1"}, "options": {"bits": 3}}
    stage = plan_for(vit(), recipe([KEEP_HEAD, first, LINEAR])).stages[0]
    fates = {step.site.path: (step.rule, step.options["bits"]) for step in stage.steps}
    assert fates["blocks.0.mlp.fc1"] == ("stage 0, rule 1", 3)
    assert fates["blocks.0.mlp.fc2"] == ("stage 0, rule 2", 5)
    assert "head" not in fates
    kept = next(skip for skip in stage.skips if skip.site.path == "head")
    assert (kept.cause, kept.reason, kept.rule) == ("keep", "the recipe keeps it", "stage 0, rule 0")


def test_a_later_rule_cannot_take_what_an_earlier_one_keeps() -> None:
    keep_all = {"match": {}, "operator": "keep", "reason": "all of it"}
    late = {**LINEAR, "optional": True}
    plan = plan_for(vit(), recipe([keep_all, late]))
    assert plan.steps == ()
    assert {(skip.cause, skip.reason) for skip in plan.stages[0].skips} == {("keep", "all of it")}


def test_rules_that_match_nothing_are_named_all_at_once_over_all_stages() -> None:
    wrong = {**LINEAR, "match": {"path": "nowhere.*"}}
    with pytest.raises(PlanError) as caught:
        plan_for(vit(), recipe([ATTENTION, wrong], [LINEAR, {**wrong, "optional": True}, wrong]))
    *faults, hint = str(caught.value).splitlines()
    assert faults == [
        f'recipe "toy", {where} matches no site of the model: it wants kind = "linear", path = "nowhere.*"'
        for where in ("stage 0, rule 1", "stage 1, rule 2")
    ]
    assert "2 attention, 1 conv2d, 9 linear, 2 mlp" in hint
    assert hint.endswith("--set stage.0.rule.1.optional=true")


def test_an_optional_rule_that_matches_nothing_is_listed_and_no_fault() -> None:
    stage = plan_for(cnn(), recipe([{**ATTENTION, "optional": True}, LINEAR])).stages[0]
    assert stage.unused_rules == ("stage 0, rule 0",)
    assert paths(stage.steps) == ["6"]


def refusing() -> tuple[nn.Module, list[dict[str, Any]]]:
    """An attention whose weights are read, and a layer that shares its own; both rules are refused."""
    model = token_net("weights read twice")
    model.head.weight = nn.Parameter(torch.randn(3, 8))
    model.attn.twin = nn.Linear(8, 3, bias=False)
    model.attn.twin.weight = model.head.weight
    return model, [ATTENTION, {**LINEAR, "match": {"path": "head"}}]


def test_refused_sites_are_faults_named_all_at_once_with_the_way_out() -> None:
    model, rules = refusing()
    with pytest.raises(PlanError) as caught:
        plan_for(model, recipe(rules))
    first, second, hint = str(caught.value).splitlines()
    assert first.startswith('recipe "toy", stage 0, rule 0: "attn" (tests.pico.Attention) is refused: its attention')
    assert second == (
        'recipe "toy", stage 0, rule 1: "head" (torch.nn.modules.linear.Linear) is refused: its weight is shared with '
        '"attn.twin", which would stay dense'
    )
    assert "--allow-partial" in hint
    assert 'on_refusal = "keep"' in hint


def test_refusals_alike_are_one_line_that_names_three_and_counts_the_others() -> None:
    model = nn.Sequential(*(refusing()[0].attn for _ in range(5)))
    with pytest.raises(PlanError) as caught:
        reparam.plan(model, recipe([ATTENTION]), example_input=torch.zeros(2, 16, 8))
    first, hint = str(caught.value).splitlines()
    assert 'rule 0: "0", "1", "2" and 2 more (tests.pico.Attention) are refused: its attention' in first
    assert "--allow-partial" in hint


def test_a_layer_that_an_earlier_stage_left_unread_is_told_from_one_that_never_ran() -> None:
    model = token_net("linear over heads")
    model.spare = nn.Linear(8, 8)
    plan = plan_for(model, recipe([ATTENTION], [LINEAR]))
    idle = [{s.site.path: s.reason for s in stage.skips if s.cause == "idle"} for stage in plan.stages]
    assert idle[1]["attn.mix_last"] == UNREAD
    assert idle[1]["spare"] == IDLE


def test_allow_partial_keeps_every_refused_site_and_on_refusal_those_of_its_rule() -> None:
    model, rules = refusing()
    partial = plan_for(model, recipe(rules), allow_partial=True)
    assert [skip.site.path for skip in partial.stages[0].skips if skip.cause == "refused"] == ["attn", "head"]
    lenient = [{**rules[0], "on_refusal": "keep"}, rules[1]]
    with pytest.raises(PlanError) as caught:
        plan_for(model, recipe(lenient))
    assert '"head"' in str(caught.value)
    assert '"attn" (' not in str(caught.value)


def test_allow_partial_does_not_excuse_a_rule_that_matches_nothing() -> None:
    with pytest.raises(PlanError, match="stage 0, rule 0 matches no site"):
        plan_for(cnn(), recipe([ATTENTION]), allow_partial=True)


class ReadsShape(Attention):
    """Sizes decide Python's way through the forward."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [super(ReadsShape, self).forward(x) for _ in range(int(x.shape[1]) // 16)]
        return rows[0] if x.shape[2] == 8 else x


def test_a_forward_that_branches_on_sizes_converts_and_guards_them() -> None:
    model = token_net(ReadsShape("matmul"))
    convert(model, recipe([ATTENTION]))
    assert model(images(3)).shape == (3, 3)
    with pytest.raises(RuntimeError, match=r"converted for a branch or size in which a value was 16, and now it is 32"):
        model(images(width=32))


class MakesConstant(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.tensor([0.5]))


class SwitchesGradient(Attention):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x * 2.0
        return super().forward(x)


class SwitchesAutocast(Attention):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (MakesConstant, "makes a constant tensor; register it as a buffer"),
        (SwitchesGradient, "it switches gradients on or off inside its forward"),
        (SwitchesAutocast, "it switches autocast inside its forward"),
    ],
)
def test_a_forward_that_a_graph_cannot_hold_is_refused_in_the_plan(made: type[Attention], words: str) -> None:
    model = token_net(made("matmul"))
    with pytest.raises(PlanError, match=words):
        plan_for(model, recipe([ATTENTION]))
    plan = plan_for(model, recipe([ATTENTION]), allow_partial=True)
    assert paths(plan.steps) == []
    assert words in plan.stages[0].skips[1].reason
    convert(model, recipe([ATTENTION]), allow_partial=True)
    assert type(model.attn) is made


def test_a_later_stage_is_planned_for_the_model_as_the_one_before_leaves_it() -> None:
    plan = plan_for(vit(), recipe([{**LINEAR, "match": {"path": "*.fc1"}}], [KEEP_HEAD, LINEAR]))
    assert set(paths(plan.stages[0].steps)).isdisjoint(paths(plan.stages[1].steps))
    assert paths(plan.stages[1].steps) == [
        f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc2")
    ]


def test_only_the_first_stages_are_planned_when_asked() -> None:
    plan = plan_for(vit(), FULL, stages=1)
    assert [stage.name for stage in plan.stages] == ["stage-0"]
    assert len(plan.recipe.stages) == 2


def test_a_plan_survives_json() -> None:
    plan = plan_for(vit(), FULL)
    text = plan.model_dump_json(by_alias=True)
    assert Plan.model_validate_json(text) == plan
    assert json.loads(text)["stages"][0]["steps"][0]["site"]["attention"]["grid"] == {
        "prefix": 1,
        "height": 4,
        "width": 4,
    }


def test_planning_changes_nothing_in_the_model() -> None:
    model = vit(drop_path_rate=0.5).train()
    model.blocks[0].attn.eval()
    model.blocks[1].register_forward_hook(lambda *_: None)

    def snapshot() -> list[Any]:
        return [(p, type(m), m.training, dict(m._forward_hooks), sorted(vars(m))) for p, m in model.named_modules()]

    tensors = {name: (id(t), t.clone(), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    before = snapshot()
    plan_for(model, FULL)
    assert snapshot() == before
    for name, tensor in model.state_dict(keep_vars=True).items():
        identity, value, version = tensors[name]
        assert (id(tensor), tensor._version) == (identity, version)
        assert torch.equal(tensor, value)
        assert tensor.grad is None


def test_planning_reads_no_weight() -> None:
    assert plan_for(vit().to("meta"), FULL) == plan_for(vit(), FULL)


def test_planning_uses_no_random_number() -> None:
    model = vit(drop_path_rate=0.5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    plan_for(model, recipe([ATTENTION]))
    assert torch.equal(torch.rand(3), expected)


def test_totals_are_counted_before_and_after() -> None:
    def count(model: nn.Module, trace: Any) -> Totals:
        return Totals(parameters=sum(p.numel() for p in model.parameters()), operations={"mul.f32": len(trace.ops)})

    model = vit()
    plan = make_plan(model, FULL, images(), count=count)
    assert plan.before.parameters == sum(p.numel() for p in model.parameters())
    assert plan.after.parameters == sum(p.numel() for p in convert(model).parameters())
    assert plan.before.multiplications > 0


def test_the_batch_size_of_the_example_does_not_change_the_decisions() -> None:
    one, three = (plan_for(vit(), FULL, images(batch)) for batch in (1, 3))
    for left, right in zip(one.steps, three.steps, strict=True):
        assert (left.site.path, left.site.attention, left.site.mlp) == (
            right.site.path,
            right.site.attention,
            right.site.mlp,
        )


def test_an_example_without_a_tensor_is_refused() -> None:
    class Makes(nn.Module):
        def forward(self, batch: int) -> Tensor:
            return torch.zeros(batch)

    with pytest.raises(PlanError, match="the example input holds no tensor"):
        plan_for(Makes(), load_recipe("none"), (3,))


def test_the_classifier_of_a_model_that_is_one_layer_cannot_be_swapped() -> None:
    with pytest.raises(PlanError, match="it is the whole model; wrap it in a module"):
        plan_for(nn.Linear(4, 4), recipe([LINEAR]), torch.zeros(2, 4))


def test_attention_without_a_grid_is_taken_without_the_convolution_and_the_plan_says_so() -> None:
    model = token_net(Attention(tokens=18), suffix=2)
    (step,) = plan_for(model, recipe([ATTENTION])).steps
    assert step.remark == "no convolution: 2 tokens follow the 4x4 image tokens"
    with pytest.raises(PlanError, match=r"no place for the convolution \(2 tokens follow the 4x4 image tokens\)"):
        plan_for(model, recipe([{**ATTENTION, "options": {"conv_missing": "refuse"}}]))
    plan = plan_for(model, recipe([{**ATTENTION, "options": {"conv_kernel": 0}}]))
    assert site_of(plan, "attn").attention.grid is None
