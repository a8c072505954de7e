import math
from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from reparam.train.nonfinite import first_nonfinite


class Root(nn.Module):
    """The square root, which is finite at 0, and whose slope there is not."""

    def forward(self, values: Tensor) -> Tensor:
        return values.sqrt()


class MaskedScores(nn.Module):
    """Scores of (B, T) whose last token is masked by minus infinity, as before a softmax."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.index_fill(-1, torch.tensor([scores.shape[-1] - 1]), -math.inf)


class Quotient(nn.Module):
    """Divides by zero by itself, between its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, values: Tensor) -> Tensor:
        values = self.first(values)
        result: Tensor = self.second(values / torch.zeros_like(values))
        return result


def net(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 3))


class Overflow(nn.Linear):
    """A layer with a factor too many: finite numbers become infinite."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) * 3e38 * 3e38


IMAGES = torch.ones(5, 4)


@pytest.mark.parametrize("path", ["blocks.1.mlp.fc1", "blocks.0.attn.proj", "head"])
def test_a_layer_that_overflows_is_named_and_not_those_after_it(
    make_vit: Callable[..., VisionTransformer], path: str
) -> None:
    model = make_vit().train()
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    model.set_submodule(path, Overflow(layer.in_features, layer.out_features))
    found = first_nonfinite(model, torch.randn(2, 1, 8, 8))
    assert found == f"{path}: its output holds infinity while its inputs are finite"


def test_a_module_that_computes_the_fault_itself_is_named_with_the_reader() -> None:
    assert first_nonfinite(net(Quotient()), IMAGES) == (
        "1: what it computes itself and hands to 1.second holds infinity"
    )


def test_a_healthy_model_has_none() -> None:
    assert first_nonfinite(net(nn.ReLU()), IMAGES, loss=torch.sum) is None


def test_infinite_scores_that_a_softmax_takes_are_no_fault() -> None:
    attention = nn.Sequential(MaskedScores(), nn.Softmax(-1))
    assert first_nonfinite(net(attention), IMAGES, loss=torch.sum) is None
    for model, path in ((net(attention, Overflow(4, 4)), "2"), (net(nn.Sequential(*attention, Overflow(4, 4))), "1.2")):
        found = first_nonfinite(model, IMAGES)
        assert found == f"{path}: its output holds infinity while its inputs are finite"


def test_a_parameter_that_is_not_finite_is_named_with_the_number_of_its_values() -> None:
    model = net(nn.ReLU())
    with torch.no_grad():
        model[2].weight[0, :2] = math.nan
        model[2].weight[1, 0] = math.inf
    assert first_nonfinite(model, IMAGES) == "parameter 2.weight: 3 of its 12 values are not finite"


def test_running_statistics_that_are_nan_are_named_and_infinite_masks_are_not() -> None:
    model = net(nn.BatchNorm1d(4))
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    assert first_nonfinite(model, IMAGES) is None
    model[1].running_mean[2] = math.nan
    assert first_nonfinite(model, IMAGES) == "buffer 1.running_mean: 1 of its 4 values are NaN"


@pytest.mark.parametrize(("value", "what"), [(math.nan, "NaN"), (math.inf, "infinity")])
def test_an_image_that_is_not_finite_is_the_culprit_whatever_the_model(value: float, what: str) -> None:
    images = IMAGES.clone()
    images[3, 1] = value
    model = net()
    model[0].bias.data.fill_(math.nan)
    assert first_nonfinite(model, images) == f"the images: image 3 of the batch is the first that holds {what}"


def test_a_loss_that_is_not_finite_by_itself_is_named() -> None:
    found = first_nonfinite(net(), IMAGES, loss=lambda logits: (logits * 0).sum().log())
    assert found == "the loss: it is infinity while the model's output is finite"


def test_a_gradient_that_only_backward_breaks_is_named_at_the_layer_before_it() -> None:
    model = net(Root())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    assert first_nonfinite(model, IMAGES) is None
    found = first_nonfinite(model, IMAGES, loss=lambda logits: logits.square().sum())
    assert found == (
        "gradient of the output of 0: it holds infinity while the loss and all gradients before are finite"
    )


def test_a_gradient_of_a_parameter_that_overflows_is_named() -> None:
    model = net()
    images = torch.full((5, 4), 1e30)
    with torch.no_grad():
        model[0].weight.mul_(1e-30)
    found = first_nonfinite(model, images, loss=lambda logits: 1e10 * logits.sum())
    assert found == ("gradient of 0.weight: it holds infinity while the loss and all gradients before are finite")


def test_without_a_loss_there_is_no_backward() -> None:
    class NoSlope(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, values: Tensor) -> Tensor:
            return values.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            raise AssertionError("there was a backward")

    class Layer(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            result: Tensor = NoSlope.apply(values)
            return result

    assert first_nonfinite(net(Layer()), IMAGES) is None


@pytest.mark.parametrize("is_training", [True, False])
def test_everything_is_afterwards_what_it_was(is_training: bool) -> None:
    model = net(nn.BatchNorm1d(4), nn.Dropout(0.5)).train(is_training)
    model(torch.randn(5, 4)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first_nonfinite(model, torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), loss=torch.sum)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)
        assert not parameter._backward_hooks
    assert all(module.training is is_training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_it_finds_the_layer_inside_checkpointed_blocks_and_in_a_caller_without_gradients(
    make_vit: Callable[..., VisionTransformer],
) -> None:
    model = make_vit().train()
    model.set_grad_checkpointing(True)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert first_nonfinite(model, images, loss=torch.sum) is None
    model.blocks[1].mlp.act = Root()
    model.blocks[1].mlp.fc1.weight.data.zero_()
    model.blocks[1].mlp.fc1.bias.data.zero_()
    with torch.no_grad():
        found = first_nonfinite(model, images, loss=lambda logits: logits.square().sum())
    assert found is not None
    assert found.startswith("gradient of the output of blocks.1.mlp.fc1: it holds")
