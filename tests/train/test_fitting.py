"""Fitting a converted model to its original before training: every layer in one pass, norms re-estimated."""

import copy

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.models.cifar_resnet import CifarResNet
from reparam.ops.adder_conv2d import AdderConv2d
from reparam.ops.fitting import correlation
from reparam.train import fitting
from reparam.train.fitting import Fitted, batch_statistics, fit_model_, reestimate_norms_
from tests.pico import recipe

ADDER = {"match": {"kind": "conv2d"}, "operator": "adder_conv2d", "options": {"init": "normal"}}
STEM = {"match": {"kind": "conv2d", "edge": "first"}, "operator": "keep"}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dense(images: Tensor) -> nn.Module:
    """A ResNet-8 whose norms know the images."""
    torch.manual_seed(0)
    model = CifarResNet(1)
    reestimate_norms_(model, [images])
    return model


def converted(dense: nn.Module, images: Tensor) -> nn.Module:
    return reparam.convert(dense, recipe([STEM, ADDER]), example_input=images[:2]).model


def test_running_statistics_become_the_mean_over_the_batches(images: Tensor) -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.Dropout(0.5))
    reestimate_norms_(model, images.split(8))
    means = torch.stack([batch.mean((0, 2, 3)) for batch in images.split(8)]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in images.split(8)]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert (norm.momentum, norm.training, model[1].training) == (0.1, False, False)


def test_only_norms_run_as_in_training_while_their_batch_statistics_are_used() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval()
    with batch_statistics(model):
        assert (model[0].training, model[1].training) == (True, False)
    assert not model[0].training


def test_every_adder_is_fitted_in_one_pass_and_follows_its_convolution(dense: nn.Module, images: Tensor) -> None:
    model = converted(dense, images)
    seen = []
    fitted = fit_model_(model, dense, images, steps=10, layer_fitted=lambda *report: seen.append(report))
    found = fitted.correlations
    assert seen == [(path, quality, 6) for path, quality in found.items()]
    assert fitted.images == len(images)
    assert set(found) == {path for path, module in model.named_modules() if isinstance(module, AdderConv2d)}
    assert len(found) == 6
    assert all(0.3 < quality <= 1 for quality in found.values())


def test_the_fitted_model_answers_like_the_original_and_a_random_one_does_not(dense: nn.Module, images: Tensor) -> None:
    random, fitted = converted(dense, images), converted(dense, images)
    reestimate_norms_(random, [images])
    fit_model_(fitted, dense, images, steps=20)

    def likeness(model: nn.Module) -> float:
        with torch.no_grad():
            return float(correlation(model(images), dense(images), channel=-1).mean())

    assert likeness(fitted) > likeness(random) + 0.1
    assert likeness(fitted) > 0.4


def test_the_original_and_the_layers_that_are_no_operators_stay_as_they_were(dense: nn.Module, images: Tensor) -> None:
    before = copy.deepcopy(dense.state_dict())
    model = converted(dense, images)
    fit_model_(model, dense, images, steps=2)
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())
    assert torch.equal(model.conv1.weight, dense.conv1.weight)
    assert torch.equal(model.layer1[0].bn1.weight, dense.layer1[0].bn1.weight)
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks]
    assert not [hook for module in dense.modules() for hook in module._forward_hooks]


def test_operators_that_have_nothing_to_fit_are_passed_over(dense: nn.Module, images: Tensor) -> None:
    shift = {"match": {"kind": "conv2d"}, "operator": "shift_conv2d"}
    model = reparam.convert(dense, recipe([STEM, shift]), example_input=images[:2]).model
    assert fit_model_(model, dense, images, steps=2) == Fitted(correlations={}, images=0)


def test_a_target_is_the_layers_own_output_also_where_an_activation_in_place_follows(images: Tensor) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)).eval()
    model = converted(dense, images)
    fit_model_(model, dense, images, steps=0)
    with torch.no_grad():
        target = dense[2](dense[:2](images))
    # The inserted norm took scale and shift of what it was fitted to: of both signs.
    torch.testing.assert_close(model[2].norm.bias, target.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert target.min() < 0


def test_memory_bounds_the_images_and_two_are_the_least(
    dense: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of one 16x16 image, two layers each at 16 channels of 16x16, 32 of 8x8 and 64 of 4x4, in four bytes.
    each = 2 * (16 * 16**2 + 32 * 8**2 + 64 * 4**2) * 4
    for memory, taken in ((5 * each, 5), (5 * each - 1, 4), (0, 2), (1000 * each, len(images))):
        monkeypatch.setattr(fitting, "TARGET_MEMORY", memory)
        assert fit_model_(converted(dense, images), dense, images, steps=0).images == taken
