"""Models that timm does not know convert like timm's own, whatever they look like inside."""

from pathlib import Path

import pytest
import torch

import reparam
from reparam.errors import PlanError
from tests.custom.case import LAWS, NAMED_LAWS, Case, conversion_of, converted, out_of
from tests.custom.models import (
    Block,
    EagerAttention,
    EinopsAttention,
    EinsumAttention,
    EncoderNet,
    MaskedEncoderNet,
    Multihead,
    Net,
    RootNet,
    ShapeFlowAttention,
    SplitAttention,
    TwiceNet,
    seeded,
    tied_net,
)
from tests.pico import cnn, inline_net

CASES = {
    "inline in a block": Case(make=seeded(inline_net), attentions=2, mlps=2),
    "inline in the model": Case(make=seeded(RootNet), attentions=1, mlps=1),
    "einops": Case(make=seeded(lambda: Net(Block(EinopsAttention()))), attentions=1, mlps=1),
    "einsum": Case(make=seeded(lambda: Net(Block(EinsumAttention()))), attentions=1, mlps=1),
    "eager with weights": Case(make=seeded(lambda: Net(Block(EagerAttention()))), attentions=1, mlps=1),
    "control flow by shape": Case(make=seeded(lambda: Net(Block(ShapeFlowAttention()))), attentions=1, mlps=1),
    "split over two modules": Case(make=seeded(lambda: Net(Block(SplitAttention()))), attentions=1, mlps=1),
    "multihead": Case(make=seeded(lambda: Net(Block(Multihead()))), attentions=1, mlps=1),
    "multihead without bias": Case(make=seeded(lambda: Net(Block(Multihead(bias=False)))), attentions=1, mlps=1),
    "encoder layers": Case(make=seeded(EncoderNet), attentions=2, mlps=2),
    "one block twice": Case(make=seeded(TwiceNet), attentions=1, mlps=1),
    "tied weights": Case(make=seeded(tied_net), attentions=2, mlps=2),
}


@pytest.mark.parametrize("law", NAMED_LAWS)
@pytest.mark.parametrize("name", CASES)
def test_a_users_model(name: str, law: str, tmp_path: Path) -> None:
    LAWS[law](CASES[name], tmp_path)


@torch.no_grad()
def test_torchs_fast_path_does_not_hide_the_conversion() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    case = CASES["encoder layers"]
    model = converted(case)
    fast = out_of(model, case.image)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert torch.equal(out_of(model, case.image), fast)
        assert (out_of(case.make(), case.image) - fast).abs().max() > 1e-3
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_the_projections_of_a_multihead_attention_become_shift_layers() -> None:
    paths = {s.site.path: s.operator for s in conversion_of(CASES["multihead"]).plan.steps}
    assert paths["blocks.0.attn.attn"] == "binary_linear_attention"
    assert paths["blocks.0.attn.attn.in_proj"] == paths["blocks.0.attn.attn.out_proj"] == "shift_linear"


def test_a_padding_mask_vanishes_only_where_the_recipe_asks_for_it() -> None:
    make, padding = seeded(MaskedEncoderNet), torch.zeros(2, 16, dtype=torch.bool)
    padding[:, -2:] = True
    inputs = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), padding)
    with pytest.raises(PlanError, match=r'a mask that comes from the input, .* add "input_mask" to drop'):
        reparam.plan(make(), "shiftaddvit", example_input=inputs)
    drop = ['stage.0.rule.0.drop=["input_mask"]']
    model = reparam.convert(make(), "shiftaddvit", example_input=inputs, overrides=drop).model.eval()
    with torch.no_grad():
        assert torch.isfinite(model(*inputs)).all()
        with pytest.raises(RuntimeError, match="was converted for self attention"):
            model.blocks[0].layers[0].self_attn(*[torch.zeros(2, 16, 8)] * 3, attn_mask=torch.zeros(16, 16))


def test_a_causal_mask_is_refused() -> None:
    make = seeded(lambda: MaskedEncoderNet(torch.full((16, 16), float("-inf")).triu(1)))
    with pytest.raises(PlanError, match=r"layers\.0\.self_attn.* refused: it has a causal mask"):
        reparam.plan(make(), "shiftaddvit", example_input=torch.zeros(2, 3, 16, 16), stages=1)


def test_a_layer_with_two_owners_stays_one_layer() -> None:
    model = converted(CASES["tied weights"])
    first, second = (block.attn.attention.value for block in model.blocks)
    assert first is second
    assert type(first).__name__ == "ShiftLinear"


def test_a_block_that_runs_twice_has_one_core_that_is_called_twice() -> None:
    case = CASES["one block twice"]
    (site,) = [s.site for s in conversion_of(case).plan.steps if s.site.kind == "attention"]
    assert (site.path, site.calls) == ("blocks.0.attn", 2)


def test_a_cnn_has_nothing_for_a_recipe_of_attention_and_says_so() -> None:
    with pytest.raises(PlanError, match="stage 0, rule 0 matches no site of the model"):
        reparam.plan(cnn(), "shiftaddvit", example_input=torch.zeros(2, 3, 16, 16))


def test_a_cnn_converts_under_a_recipe_for_its_layers(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = reparam.convert(cnn(), "deepshift-q", example_input=x).model
    assert not torch.equal(out_of(model, x), out_of(cnn(), x))
    model.train()(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    reparam.save(model.eval(), tmp_path / "run")
    assert torch.equal(out_of(reparam.load(tmp_path / "run", base=cnn), x), out_of(model, x))
