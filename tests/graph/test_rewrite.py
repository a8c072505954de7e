"""What a rewrite keeps and what it changes: the pitfalls of rewriting live models, each with its test."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.errors import RewriteError
from reparam.graph.rewrite import rewrite
from reparam.ops.base import Operator
from reparam.recipe.load import load_recipe
from reparam.recipe.schema import Recipe
from tests.pico import (
    ATTENTION,
    FULL,
    KEEP_HEAD,
    LINEAR,
    SPELLINGS,
    Attention,
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


@pytest.fixture(scope="module")
def converted_once() -> nn.Module:
    return convert(vit(drop_path_rate=0.4))


@pytest.fixture
def converted(converted_once: nn.Module) -> nn.Module:
    return copy.deepcopy(converted_once)


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
    assert added == {"attn.core.threshold_q", "attn.core.threshold_k", "attn.core.token_conv.conv.weight"}
    assert all(dict(model.named_parameters())[name] is p for name, p in parameters.items())
    assert set(model.state_dict()) == {*parameters, *added}
    assert not torch.equal(model(images()), before)


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The operator's formula, token by token, with zero thresholds and a zero convolution."""
    q, k = (torch.where(x >= 0, 1.0, -1.0) for x in (q, k))
    d = q.shape[-1]
    similarity = ((q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1) + d) / (2 * d)
    return (similarity.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2) / similarity.sum(-1, keepdim=True)


@pytest.mark.parametrize("spelling", ["scale before", "permuted keys", "fused", "product modules"])
def test_the_converted_attention_computes_the_operators_formula_on_the_models_own_q_k_and_v(spelling: str) -> None:
    model = token_net(spelling)
    attn, x = model.attn, torch.randn(2, 16, 8)
    q, k, v = attn.qkv(x).reshape(2, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = attn.proj(reference(q, k, v).transpose(1, 2).reshape(2, 16, 8))
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


def test_timms_methods_work_on_a_converted_vit(converted: nn.Module) -> None:
    features = converted.forward_features(images())
    assert features.shape == (2, 17, 16)
    assert torch.equal(converted.forward_head(features), converted(images()))
    final, taken = converted.forward_intermediates(images(), indices=1)
    assert torch.equal(final, features)
    assert [t.shape for t in taken] == [(2, 16, 4, 4)]
    assert converted.no_weight_decay() == vit().no_weight_decay()
    assert converted.group_matcher() == vit().group_matcher()
    assert converted.get_classifier() is converted.head
    converted.reset_classifier(7)
    assert converted(images()).shape == (2, 7)


def test_gradient_checkpointing_gives_the_same_gradients_and_recomputes(converted: nn.Module) -> None:
    # The noise of the router and the dropped paths come from one seed, which checkpointing keeps.
    def gradients(model: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(3)
        calls.clear()
        model.train()(images()).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    calls: list[int] = []
    twin = copy.deepcopy(converted)
    for model in (converted, twin):
        model.blocks[0].attn.register_forward_hook(lambda *_: calls.append(1))
    plain = gradients(converted)
    assert len(calls) == 1
    twin.set_grad_checkpointing(True)
    checkpointed = gradients(twin)
    assert len(calls) == 2
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_hooks_that_were_there_before_still_fire() -> None:
    model = vit()
    seen: list[str] = []
    model.blocks[0].attn.register_forward_hook(lambda *_: seen.append("attn"))
    model.blocks[0].register_forward_pre_hook(lambda *_: seen.append("block"))
    model.blocks[0].attn.qkv.register_forward_hook(lambda *_: seen.append("dense qkv"))
    convert(model)
    seen.clear()
    model(images())
    # The layer that was swapped took its hook along.
    assert seen == ["block", "attn"]


def test_drop_path_is_random_in_training_and_absent_in_evaluation(converted: nn.Module) -> None:
    with torch.no_grad():
        converted.eval()
        assert torch.equal(converted(images()), converted(images()))
        converted.train()
        outs = [converted(images()) for _ in range(4)]
    assert any(not torch.equal(outs[0], out) for out in outs[1:])


def test_functional_dropout_in_the_owner_follows_the_mode_after_conversion() -> None:
    model = convert(inline_net(), recipe([ATTENTION]))
    x = torch.ones(2, 16, 8)
    block = model.blocks[0]
    assert torch.equal(block.eval()(x), block(x))
    assert not torch.equal(block.train()(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


@pytest.mark.parametrize("spelling", ["fused with dropout", "dropout module", "functional dropout"])
def test_attention_dropout_is_gone_in_both_modes(spelling: str) -> None:
    model = convert(token_net(spelling), recipe([ATTENTION]))
    evaluated = model.eval()(images())
    for out in (model.train()(images()), model(images())):
        assert torch.equal(out, evaluated)


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


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_a_converted_model_takes_every_batch_size_image_by_image(converted: nn.Module, batch: int) -> None:
    x = images(batch)
    whole = converted.eval()(x)
    for number in range(batch):
        torch.testing.assert_close(whole[number : number + 1], converted(x[number : number + 1]), rtol=1e-4, atol=1e-5)


def test_a_model_of_dynamic_size_takes_another_size_after_conversion() -> None:
    model = convert(vit(dynamic_img_size=True))
    assert model(images(height=24, width=24)).shape == (2, 3)


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
    ("pool", "still"),
    [
        ("avg", set()),
        # The classifier reads the class token alone, and the last convolution reaches only the other tokens.
        ("token", {"blocks.1.attn.core.token_conv.conv.weight"}),
    ],
)
def test_every_parameter_that_the_output_reads_moves_in_one_step_of_training(pool: str, still: set[str]) -> None:
    model = convert(vit(global_pool=pool)).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    F.cross_entropy(model(images(8)), torch.arange(8) % 3).backward()
    optimiser.step()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == still


def test_a_deep_copy_is_equal_and_independent(converted: nn.Module) -> None:
    duplicate = copy.deepcopy(converted)
    expected = converted(images())
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(0.5)
    assert torch.equal(duplicate(images()), expected)
    assert type(duplicate.blocks[0].attn) is type(converted.blocks[0].attn)


def test_a_pickled_model_comes_back_with_its_outputs_in_both_modes(converted: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.save(converted, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(loaded.eval()(images()), converted.eval()(images()))
    outs = []
    for model in (loaded, converted):
        torch.manual_seed(1)
        outs.append(model.train()(images()))
    assert torch.equal(*outs)


def test_a_state_dict_goes_into_a_model_converted_by_the_same_plan(converted: nn.Module) -> None:
    other = vit(drop_path_rate=0.4)
    rewrite(other, plan_for(other, FULL), images())
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    other.load_state_dict(converted.state_dict(), strict=True)
    assert torch.equal(other(images()), converted(images()))


def test_the_exported_model_has_no_softmax_and_no_fused_attention_left() -> None:
    def attention_operations(model: nn.Module) -> list[str]:
        program = torch.export.export(model.eval(), (images(),), strict=False)
        names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        return [name for name in names if "softmax" in name or "scaled_dot_product" in name]

    assert len(attention_operations(vit())) == 2
    assert attention_operations(convert(vit(), recipe([ATTENTION]))) == []


@pytest.mark.slow
def test_a_converted_model_compiles_as_one_graph_with_the_same_output() -> None:
    model = convert(vit(depth=1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-5)
    compiled.train()(images()).sum().backward()


class Keywords(Attention):
    """Takes an optional mask, a flag, a number and a nested argument."""

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None, *, flag: bool = True, scale: float = 1.0, more: Any = ()
    ) -> tuple[Tensor, dict[str, Any]]:
        q, k, v = self.qkv(x * scale + sum(more)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT
        if mask is not None:
            scores = scores + mask
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.proj(out) if flag else out, {"scale": scale, "none": None}


class CallsWithKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Keywords()

    def forward(self, x: Tensor) -> Tensor:
        out, rest = self.inner(x, None, flag=False, scale=2.0, more=[x, 0.5])
        assert rest["none"] is None
        return out + self.inner(out)[0] * rest["scale"]


def test_an_owner_keeps_its_optional_arguments_flags_and_results() -> None:
    model = token_net(CallsWithKeywords())
    dense = copy.deepcopy(model)
    convert(model, recipe([ATTENTION]))
    out, rest = model.attn.inner(torch.ones(2, 16, 8), None, flag=False, scale=3.0, more=[torch.ones(8), 0.25])
    assert out.shape == (2, 16, 8)
    assert rest == {"scale": 3.0, "none": None}
    assert model(images()).shape == dense(images()).shape


def test_a_call_that_was_not_converted_raises_and_names_the_known_ones() -> None:
    model = convert(token_net(CallsWithKeywords()), recipe([ATTENTION]))
    with pytest.raises(RuntimeError, match=r"Keywords was converted for calls with .*; .*, got \(tensor"):
        model.attn.inner(torch.ones(2, 16, 8), torch.zeros(16, 16))


class Caches(Attention):
    """Keeps a table in a plain attribute while evaluating, as several timm models do."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}
        self.table = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x + self.table)
        if "table" not in self.cache:
            self.cache["table"] = self.table + 0.0
        return super().forward(x + self.cache["table"])


def test_a_cache_of_the_owner_holds_no_trace_of_the_tracing() -> None:
    model = token_net(Caches())
    convert(model, recipe([ATTENTION]))
    assert all(isinstance(value, Tensor) and not value.is_meta for value in model.attn.cache.values())
    copy.deepcopy(model.eval())
    assert torch.equal(model.eval()(images()), model.train()(images()))


class InPlace(Attention):
    """Statements whose results nobody reads by name, a buffer that is computed with, and a view after the core."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y.add_(self.offset * 2)
        q, k, v = self.qkv(y).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = (q @ k.mT).softmax(-1) @ v
        return self.proj(out.view(x.shape[0], -1, 4).unflatten(1, (2, 16)).transpose(1, 2).flatten(2))


def test_statements_in_place_buffers_and_views_survive() -> None:
    model = token_net(InPlace())
    x = torch.randn(2, 16, 8)
    q, k, v = model.attn.qkv(x + 2).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    expected = model.attn.proj(reference(q, k, v).transpose(1, 2).flatten(2))
    keys = set(model.state_dict())
    convert(model, recipe([ATTENTION]))
    torch.testing.assert_close(model.attn(x), expected, rtol=1e-5, atol=1e-6)
    added = set(model.state_dict()) - keys
    assert all(name.startswith("attn.core.") for name in added)


class Crowded(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.core(x))


def test_an_owner_that_has_a_core_already_keeps_it() -> None:
    model = token_net(Crowded())
    convert(model, recipe([ATTENTION]))
    assert isinstance(model.attn.core, nn.Linear)
    assert isinstance(model.attn.core_1, Operator)


def test_an_attention_that_is_called_twice_gets_one_core_for_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Attention()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    model = convert(token_net(Twice()), recipe([ATTENTION]))
    cores = [m for m in model.modules() if isinstance(m, Operator)]
    assert len(cores) == 1
    counted: list[int] = []
    cores[0].register_forward_hook(lambda *_: counted.append(1))
    model(images())
    assert len(counted) == 2


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
