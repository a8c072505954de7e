"""Bias correction against closed forms: the mean of a clipped normal, the sum of two, and what only norms can know."""

import copy
import math

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from reparam.calibrate.norm_statistics import correct_biases_
from reparam.models.cifar_resnet import CifarResNet
from tests.pico import LINEAR, convert, images, recipe, vit

OPTIONS = {"options": {"bits": 2, "bias_correction": True}, "optional": True}
BOTH = recipe([{"match": {"kind": "conv2d"}, "operator": "shift_conv2d", **OPTIONS}, {**LINEAR, **OPTIONS}])


class Net(nn.Module):
    """stem, norm, ReLU, a layer with a bias; beside it a residual sum of two norms before one without, and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.other, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(5)
        self.biased, self.free = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 5, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        first = self.norm(x)
        return self.biased(first.relu()), self.last(self.free(first + self.other(x)))


def made() -> tuple[Net, Net]:
    torch.manual_seed(0)
    dense = Net().eval()
    for norm in (dense.norm, dense.other, dense.last):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return convert(copy.deepcopy(dense), BOTH).eval(), dense  # type: ignore[return-value]


def clipped_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[max(0, x)] of a normal x."""
    z = mean / deviation
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return mean * 0.5 * (1 + torch.erf(z / math.sqrt(2))) + deviation * density


def gap(model: Net, dense: Net, name: str) -> Tensor:
    return (model.get_submodule(name).weight - dense.get_submodule(name).weight).detach().flatten(1)  # type: ignore[operator,union-attr]


def test_a_bias_loses_what_rounding_adds_behind_a_norm_and_a_relu() -> None:
    model, dense = made()
    before = model.biased.bias.detach().clone()
    assert correct_biases_(model, dense, images()) == ("biased", "free")
    expected = gap(model, dense, "biased") @ clipped_mean(dense.norm.bias.detach(), dense.norm.weight.detach().abs())
    torch.testing.assert_close(before - model.biased.bias.detach(), expected, rtol=0, atol=0.03)
    assert expected.abs().max() > 0.1


def test_the_norm_behind_a_layer_without_bias_expects_the_mean_and_variance_of_a_residual_sum() -> None:
    model, dense = made()
    correct_biases_(model, dense, images())
    mean, variance = dense.norm.bias + dense.other.bias, dense.norm.weight**2 + dense.other.weight**2
    expected = gap(model, dense, "free") @ mean
    torch.testing.assert_close(model.last.running_mean - dense.last.running_mean, expected.detach(), rtol=0, atol=0.05)
    ratio = [(layer.weight.detach().flatten(1) ** 2) @ variance.detach() for layer in (model.free, dense.free)]
    torch.testing.assert_close(
        model.last.running_var / dense.last.running_var, ratio[0] / ratio[1], rtol=0.05, atol=0.0
    )


def test_layers_before_every_norm_and_layers_that_do_not_ask_keep_what_they_have() -> None:
    model, dense = made()
    state = copy.deepcopy(model.stem.state_dict())
    correct_biases_(model, dense, images(), chosen=lambda path: path != "biased")
    assert all(torch.equal(state[name], tensor) for name, tensor in model.stem.state_dict().items())
    assert torch.equal(model.biased.bias, dense.biased.bias)
    assert torch.equal(model.norm.running_mean, dense.norm.running_mean)


def test_the_dense_model_and_the_modes_of_both_are_left_alone() -> None:
    model, dense = made()
    model.train()
    dense.train()
    before = copy.deepcopy(dense.state_dict())
    correct_biases_(model, dense, images())
    assert model.training
    assert dense.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_an_activation_inside_a_norm_counts() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.Conv2d(4, 6, 1)).eval()
    nn.init.normal_(dense[1].bias)
    model = convert(copy.deepcopy(dense), BOTH).eval()
    before = model[2].bias.detach().clone()
    correct_biases_(model, dense, images())
    added = (model[2].weight - dense[2].weight).detach().flatten(1)
    expected = added @ clipped_mean(dense[1].bias.detach(), torch.ones(4))
    torch.testing.assert_close(before - model[2].bias.detach(), expected, rtol=0, atol=0.03)


def test_a_network_comes_closer_to_the_dense_one_on_images() -> None:
    torch.manual_seed(0)
    dense = CifarResNet(1, num_classes=3).train()
    for seed in range(20):
        dense(images(32, seed=seed))
    dense.eval()
    plain = convert(copy.deepcopy(dense), BOTH).eval()
    model = copy.deepcopy(plain)
    correct_biases_(model, dense, images())
    x = images(64, seed=99)
    with torch.no_grad():
        assert (model(x) - dense(x)).norm() < 0.9 * (plain(x) - dense(x)).norm()


@pytest.mark.parametrize("asks", [True, False])
def test_without_batch_norms_nothing_is_known(asks: bool) -> None:
    options = {"options": {"bias_correction": asks}}
    dense = vit()
    model = convert(copy.deepcopy(dense), recipe([{**LINEAR, **options}])).eval()
    state = copy.deepcopy(model.state_dict())
    assert correct_biases_(model, dense, images()) == ()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
