"""What a rewrite keeps, what it changes, and whom it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import RewriteError
from reparam.graph.rewrite import rewrite
from reparam.recipe.load import load_recipe
from reparam.recipe.schema import Recipe
from tests.pico import (
    ATTENTION,
    FULL,
    KEEP_HEAD,
    LINEAR,
    SPELLINGS,
    Attention,
    binary_attention,
    cnn,
    convert,
    images,
    inline_net,
    plan_for,
    recipe,
    token_net,
    vit,
)

KEEP_ALL = recipe([{"match": {}, "operator": "keep"}])


@pytest.mark.parametrize("wanted", [load_recipe("none"), KEEP_ALL], ids=["no rules", "keep all"])
@pytest.mark.parametrize("make", [vit, inline_net, cnn])
def test_a_recipe_that_converts_nothing_is_the_identity_bit_for_bit(make: Any, wanted: Recipe) -> None:
    model, original = make(), make()
    same = convert(model, wanted)
    assert same is model
    assert [(p, type(m)) for p, m in model.named_modules()] == [(p, type(m)) for p, m in original.named_modules()]
    assert torch.equal(model(images()), original(images()))
    state = original.state_dict()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_converts_and_only_adds_keys(spelling: str) -> None:
    model = token_net(spelling)
    parameters = dict(model.named_parameters())
    before = model(images())
    convert(model, recipe([ATTENTION]))
    added = {name for name, _ in model.named_parameters()} - parameters.keys()
    conv = set() if spelling == "windows" else {"attn.core.token_conv.conv.weight"}  # of a row, which is no grid
    assert added == {"attn.core.threshold_q", "attn.core.threshold_k", *conv}
    assert all(dict(model.named_parameters())[name] is p for name, p in parameters.items())
    assert set(model.state_dict()) == {*parameters, *added, "attn.mask"}
    assert not torch.equal(model(images()), before)


@pytest.mark.parametrize(
    "spelling",
    ["scale before", "permuted keys", "fused", "product modules", "bias", "einsum with heads last", "talking heads"],
)
def test_the_converted_attention_computes_the_operators_formula_on_the_models_own_q_k_and_v(spelling: str) -> None:
    model = token_net(spelling)
    attn, x = model.attn, torch.randn(2, 16, 8)
    q, k, v = attn.qkv(x).reshape(2, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = attn.proj(binary_attention(q, k, v).transpose(1, 2).reshape(2, 16, 8))
    convert(model, recipe([ATTENTION]))
    torch.testing.assert_close(model.attn(x), expected, rtol=1e-5, atol=1e-6)


def test_the_original_weights_stay_under_their_names_in_the_first_stage() -> None:
    model, original = vit(), vit().state_dict()
    convert(model, recipe([ATTENTION]))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in original.items())


def test_modules_keep_their_identity_class_and_repr() -> None:
    model = vit()
    attn, cls = model.blocks[0].attn, type(model.blocks[0].attn)
    convert(model)
    assert model.blocks[0].attn is attn
    assert isinstance(attn, cls)
    assert (type(attn).__name__, type(attn).__module__) == (cls.__name__, cls.__module__)
    assert type(attn).__doc__ == cls.__doc__


def test_modes_of_all_modules_are_as_before_and_new_cores_follow_their_owner() -> None:
    model = vit().train()
    model.blocks[1].attn.eval()
    modes = {path: module.training for path, module in model.named_modules()}
    convert(model, recipe([ATTENTION]))
    after = {path: module.training for path, module in model.named_modules()}
    assert {path: after[path] for path in modes} == modes
    assert after["blocks.0.attn.core"]
    assert not after["blocks.1.attn.core"]


def test_statistics_of_normalisations_do_not_move() -> None:
    class Normed(Attention):
        def __init__(self) -> None:
            super().__init__("fused")
            self.stats = nn.BatchNorm1d(16)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.stats(x))

    model = token_net(Normed()).train()
    convert(model, recipe([ATTENTION]))
    assert model.attn.stats.num_batches_tracked == 0
    assert torch.equal(model.attn.stats.running_mean, torch.zeros(16))


def test_converting_uses_random_numbers_of_the_user_only_for_new_weights() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = vit()
    plan = plan_for(model, recipe([KEEP_HEAD, LINEAR]))
    torch.manual_seed(5)
    rewrite(model, plan, images())
    assert torch.equal(torch.rand(3), expected)


def test_a_non_square_model_convolves_over_its_own_grid() -> None:
    x = images(width=24)
    model = convert(vit(img_size=(16, 24)), FULL, x)
    conv = model.blocks[0].attn.core.token_conv
    v = torch.zeros(1, 2, 25, 8)
    v[0, 0, 1 + 6 + 2, 0] = 1.0  # row 1, column 2 of the 4x6 grid
    with torch.no_grad():
        conv.conv.weight.fill_(1.0)
    touched = conv(v)[0, 0, :, 0].nonzero().flatten().tolist()
    assert touched == [1 + 6 * row + column for row in (0, 1, 2) for column in (1, 2, 3)]


@pytest.mark.parametrize(
    ("wanted", "dtype"),
    [
        (recipe([ATTENTION]), torch.bfloat16),
        (FULL, torch.float64),
        (FULL, torch.bfloat16),
    ],
    ids=["attention-bfloat16", "full-float64", "full-bfloat16"],
)
def test_the_model_stays_in_its_precision(wanted: Recipe, dtype: torch.dtype) -> None:
    x = images().to(dtype)
    model = convert(vit().to(dtype), wanted, x)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(x).dtype == dtype


def test_stages_can_be_applied_one_by_one_with_the_same_result() -> None:
    model, at_once = vit(), vit()
    plan = plan_for(model, FULL)
    rewrite(model, plan, images(), stage=0)
    assert not any(type(m).__name__ == "MoeMlp" for m in model.modules())
    rewrite(model, plan, images(), stage=1)
    rewrite(at_once, plan, images())
    assert list(model.state_dict()) == list(at_once.state_dict())
    assert torch.equal(model(images()), at_once(images()))


def test_another_models_plan_is_refused_and_nothing_is_changed() -> None:
    plan = plan_for(vit(), FULL)
    other = vit(embed_dim=32)
    before = other(images())
    with pytest.raises(RewriteError, match="the plan was made for another model than this VisionTransformer"):
        rewrite(other, plan, images())
    assert torch.equal(other(images()), before)


def test_a_later_stage_is_refused_by_a_model_that_it_does_not_fit() -> None:
    plan = plan_for(vit(), FULL)
    finished = convert(vit())
    with pytest.raises(RewriteError, match=r'"stage-1" does not fit this VisionTransformer: at "blocks\.0\.attn\.qkv"'):
        rewrite(finished, plan, images(), stage=1)
    with pytest.raises(RewriteError, match="finds nothing"):
        rewrite(cnn(), plan, images(), stage=1)
    with pytest.raises(RewriteError, match="the plan has no stage 2; it has 2, counted from 0"):
        rewrite(vit(), plan, images(), stage=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_do_not_become_powers_of_two(value: float) -> None:
    model = vit()
    weight = model.get_parameter("blocks.0.mlp.fc1.weight")
    with torch.no_grad():
        weight[0, :2] = value
    kept, size = [type(module) for module in model.modules()], weight.numel()
    said = rf'^"blocks\.0\.mlp\.fc1": 2 of the {size} values of its weight are not finite, and shift_linear cannot'
    with pytest.raises(RewriteError, match=said):
        convert(model, recipe([KEEP_HEAD, LINEAR]))
    assert [type(module) for module in model.modules()] == kept
