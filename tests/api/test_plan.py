"""`reparam.plan` as users call it: by name or with a module, by recipe name, path or object."""

from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import ModelError, PlanError, RecipeError
from reparam.models.cifar_resnet import CifarResNet
from tests.on_paper import PICO as PICO_SIZES
from tests.on_paper import vit_operations
from tests.pico import ATTENTION, FULL, images, inline_net, recipe, vit

PICO = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
NAMED = {"img_size": 16, "num_classes": 3, "model_kwargs": PICO}


def test_a_named_model_is_planned_without_weights_like_the_module_it_builds() -> None:
    by_name = reparam.plan("vit_tiny_patch16_224", "shiftaddvit", **NAMED)
    by_module = reparam.plan(vit(), "shiftaddvit", example_input=images())
    assert [(s.site, s.operator) for s in by_name.steps] == [(s.site, s.operator) for s in by_module.steps]
    assert (by_name.before, by_name.after) == (by_module.before, by_module.after)
    assert by_name.input_shape == (2, 3, 16, 16)


def test_totals_are_per_image_and_those_counted_on_paper() -> None:
    plan = reparam.plan(vit(), "shiftaddvit", example_input=images(4))
    wanted = vit_operations(**PICO_SIZES)
    assert plan.before.multiplications == wanted["mul.f32"]
    assert plan.before.operations.items() >= wanted.items()
    assert plan.before.parameters == sum(p.numel() for p in vit().parameters())
    assert plan.after.multiplications < plan.before.multiplications / 2
    assert plan.before.uncounted == {}


FOR_CNNS = {"addernet", "shiftaddnet", "shiftaddnet-fixed"}


@pytest.mark.parametrize("name", [s.name for s in reparam.list_recipes() if s.name not in FOR_CNNS])
def test_every_shipped_recipe_plans_a_plain_vit_and_a_distilled_one_without_refusals(name: str) -> None:
    for model in (vit(), vit(distilled=True)):
        plan = reparam.plan(model, name, example_input=images())
        assert not [skip for stage in plan.stages for skip in stage.skips if skip.cause == "refused"]
        assert bool(plan.steps) == (name != "none")


@pytest.mark.parametrize("name", sorted(FOR_CNNS))
def test_a_recipe_for_convolutions_keeps_stem_and_head_and_says_when_a_model_has_no_other(name: str) -> None:
    plan = reparam.plan(CifarResNet(1), name, example_input=images())
    kept = {skip.site.path for skip in plan.stages[0].skips}
    assert kept == {"conv1", "fc"}
    assert len(plan.steps) == 6
    with pytest.raises(PlanError, match='matches no site of the model: it wants kind = "conv2d"'):
        reparam.plan(vit(), name, example_input=images())


def test_a_model_that_timm_does_not_know_needs_an_example_input() -> None:
    assert reparam.plan(inline_net(), FULL, example_input=images()).steps
    with pytest.raises(ModelError, match="nothing says what InlineNet takes as input; pass example_input="):
        reparam.plan(inline_net(), FULL)


def test_shape_arguments_are_refused_for_a_module_that_exists() -> None:
    with pytest.raises(ModelError, match="num_classes, img_size shape a model that is built by name"):
        reparam.plan(vit(), FULL, example_input=images(), num_classes=5, img_size=16)


def test_overrides_and_the_number_of_stages_are_honoured() -> None:
    changed = ["stage.0.rule.0.conv_kernel=5"]
    plan = reparam.plan(vit(), "shiftaddvit", example_input=images(), stages=1, overrides=changed)
    assert [stage.name for stage in plan.stages] == ["attention"]
    assert {step.options["conv_kernel"] for step in plan.steps} == {5}


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nsummary = "Mine."\n[[stage]]\nname = "only"\n'
        '[[stage.rule]]\nmatch = { kind = "attention" }\noperator = "binary_linear_attention"\n'
    )
    assert (
        reparam.plan(vit(), path, example_input=images()).steps
        == reparam.plan(vit(), recipe([ATTENTION]), example_input=images()).steps
    )


def test_an_unknown_model_recipe_operator_or_option_is_named() -> None:
    with pytest.raises(ModelError, match="deit_tinny"):
        reparam.plan("deit_tinny", "shiftaddvit")
    with pytest.raises(RecipeError, match="shiftadvit"):
        reparam.plan(vit(), "shiftadvit", example_input=images())
    with pytest.raises(RecipeError, match="shift_liner"):
        reparam.plan(vit(), recipe([{"operator": "shift_liner"}]), example_input=images())
    with pytest.raises(RecipeError, match="bitz"):
        reparam.plan(vit(), recipe([{**ATTENTION, "options": {"bitz": 3}}]), example_input=images())


def test_a_recipe_for_attention_does_not_fit_a_model_without() -> None:
    with pytest.raises(PlanError, match='recipe "toy", stage 0, rule 0 matches no site of the model'):
        reparam.plan(nn.Sequential(nn.Linear(4, 4)), recipe([ATTENTION]), example_input=torch.zeros(2, 4))


def test_allow_partial_and_overridden_on_refusal_keep_what_is_refused() -> None:
    strided = vit(patch_size=16, img_size=32)  # 2x2 tokens and a class token: nothing is refused
    assert reparam.plan(strided, FULL, example_input=images(height=32, width=32)).steps
    masked = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True))[0]
    x = (torch.zeros(2, 5, 8),) * 3
    with pytest.raises(PlanError, match="add_zero_attn"):
        reparam.plan(masked, recipe([ATTENTION]), example_input=x)
    assert reparam.plan(masked, recipe([ATTENTION]), example_input=x, allow_partial=True).steps == ()
    kept = reparam.plan(masked, recipe([ATTENTION]), example_input=x, overrides=["stage.0.rule.0.on_refusal=keep"])
    assert [skip.site.path for skip in kept.stages[0].skips if skip.cause == "refused"] == [""]
