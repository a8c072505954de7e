"""What users do with a model must work with a converted one: pitfalls of rewriting live models, each with its test."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.graph.rewrite import rewrite
from tests.pico import (
    ATTENTION,
    FULL,
    convert,
    images,
    inline_net,
    plan_for,
    recipe,
    token_net,
    vit,
)


@pytest.fixture(scope="module")
def converted_once() -> nn.Module:
    return convert(vit(drop_path_rate=0.4))


@pytest.fixture
def converted(converted_once: nn.Module) -> nn.Module:
    return copy.deepcopy(converted_once)


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


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_a_converted_model_takes_every_batch_size_image_by_image(converted: nn.Module, batch: int) -> None:
    x = images(batch)
    whole = converted.eval()(x)
    for number in range(batch):
        torch.testing.assert_close(whole[number : number + 1], converted(x[number : number + 1]), rtol=1e-4, atol=1e-5)


def test_a_model_of_dynamic_size_takes_another_size_after_conversion() -> None:
    model = convert(vit(dynamic_img_size=True))
    assert model(images(height=24, width=24)).shape == (2, 3)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_every_parameter_moves_in_one_step_of_training(pool: str) -> None:
    model = convert(vit(global_pool=pool)).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    F.cross_entropy(model(images(8)), torch.arange(8) % 3).backward()
    optimiser.step()
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


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
