"""Models whose forward reads values: what ran on the example input converts; the plan says what it could not see."""

from pathlib import Path

import pytest
import torch

import reparam
from reparam.errors import PlanError, RewriteError
from reparam.graph.rewrite import rewrite
from tests.custom.case import LAWS, NAMED_LAWS, Case, conversion_of, converted, out_of, refusals
from tests.custom.models import (
    Block,
    ClampedAttention,
    EinopsAttention,
    MaskedEncoderNet,
    Net,
    PruningNet,
    RoutedNet,
    SkippingNet,
    seeded,
)

CASES = {
    "a block that may be left out": Case(
        make=seeded(SkippingNet), attentions=2, mlps=2, no_export="data-dependent expression", mixes_images=True
    ),
    "a number of tokens that depends on values": Case(
        make=seeded(PruningNet), attentions=2, mlps=2, no_export="data-dependent expression", mixes_images=True
    ),
    "experts by index": Case(make=seeded(RoutedNet), attentions=1, mlps=1),
}


@pytest.mark.parametrize("law", NAMED_LAWS)
@pytest.mark.parametrize("name", CASES)
def test_a_model_that_reads_values(name: str, law: str, tmp_path: Path) -> None:
    LAWS[law](CASES[name], tmp_path)


def test_the_plan_says_what_it_could_not_see() -> None:
    (note,) = conversion_of(CASES["a block that may be left out"]).plan.unseen
    assert note == "the model's own forward reads values of tensors (bool), so only what ran on this input is known"


def test_torchs_encoder_reads_a_mask_to_see_whether_it_is_causal_and_still_converts() -> None:
    make, x = seeded(lambda: MaskedEncoderNet(-torch.eye(16))), torch.zeros(2, 3, 16, 16)
    plan = reparam.convert(make(), "shiftaddvit", example_input=x, stages=1).plan
    assert [step.remark for step in plan.steps] == ["drops a constant mask"] * 2
    assert plan.unseen == (
        'the forward of "blocks.0" reads values of tensors (bool), so only what ran on this input is known',
    )


def test_every_stage_is_planned_on_the_branch_of_the_example_input() -> None:
    plan = reparam.plan(
        seeded(lambda: SkippingNet(threshold=1.0))(), "shiftaddvit", example_input=10 * torch.ones(2, 3, 16, 16)
    )
    shifted = {step.site.path for step in plan.stages[1].steps if step.operator == "shift_linear"}
    assert {"blocks.0.attn.to_qkv", "blocks.1.attn.to_qkv"} <= shifted


def test_a_run_that_takes_another_branch_than_the_plan_is_told_so() -> None:
    make, x = seeded(lambda: SkippingNet(threshold=1.0)), 10 * torch.ones(2, 3, 16, 16)
    plan = reparam.plan(make(), "shiftaddvit", example_input=x)
    with pytest.raises(RewriteError, match=r'"blocks\.1\.attn": it was called when it was planned, and is not now'):
        rewrite(make(), plan, torch.zeros_like(x))


def test_a_block_that_did_not_run_is_idle_and_stays_dense() -> None:
    make = seeded(lambda: SkippingNet(threshold=1e9))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plan = reparam.plan(make(), "shiftaddvit", example_input=x)
    assert [s.site.path for s in plan.steps if s.site.kind == "attention"] == ["blocks.0.attn"]
    idle = {skip.site.path for stage in plan.stages for skip in stage.skips if skip.site.idle}
    assert {"blocks.1.attn.to_qkv", "blocks.1.mlp.0"} <= idle


def test_an_attention_that_reads_values_itself_is_refused_and_its_layers_still_convert() -> None:
    make = seeded(lambda: Net(Block(EinopsAttention()), Block(ClampedAttention())))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        PlanError, match=r'"blocks\.1\.attn" .* is refused: its forward reads values of tensors \(item\)'
    ):
        reparam.plan(make(), "shiftaddvit", example_input=x)
    case = Case(make=make, attentions=1, mlps=2, refused=("its forward reads values of tensors",))
    conversion = conversion_of(case)
    assert [skip.site.path for skip in refusals(conversion.plan)] == ["blocks.1.attn"]
    shifted = [s.site.path for s in conversion.plan.steps if s.operator == "shift_linear"]
    assert {"blocks.1.attn.qkv", "blocks.1.attn.proj"} <= set(shifted)
    assert torch.isfinite(out_of(converted(case), x)).all()
