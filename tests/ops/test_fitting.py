"""Fitting a layer to a target: correlations against their definition, and adders that learn what a convolution does."""

import numpy as np
import torch
from torch import nn

from reparam.ops.adder_conv2d import AdderConv2d, AdderConv2dOptions
from reparam.ops.adder_layer import AdderOptions
from reparam.ops.adder_linear import AdderLinear
from reparam.ops.conv_examples import conv_site
from reparam.ops.fitting import correlation, fit_
from reparam.ops.site import Site


def test_correlation_is_pearsons_for_each_channel() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    other = other + 0.7 * one
    expected = [np.corrcoef(one[:, c].flatten().numpy(), other[:, c].flatten().numpy())[0, 1] for c in range(3)]
    torch.testing.assert_close(correlation(one, other, channel=1), torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(correlation(3 * one + 7, one, channel=1), torch.ones(3))


def test_a_constant_channel_correlates_with_nothing_and_is_no_nan() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert correlation(torch.ones_like(x), x, channel=1).tolist() == [0.0, 0.0, 0.0]


def test_steps_raise_the_correlation_and_leave_no_gradient() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(64, 8), nn.Linear(8, 4)
    target = x @ torch.randn(8, 4)
    before = correlation(layer(x), target, channel=-1).mean()
    fit_(layer, [layer.weight], x, target, steps=50, lr=0.05, channel=-1)
    assert correlation(layer(x), target, channel=-1).mean() > 0.95 > before
    assert layer.weight.grad is None


def adder(conv: nn.Conv2d, *, normalised: bool = True) -> AdderConv2d:
    site = conv_site(conv).model_copy(update={"normalised": normalised})
    return AdderConv2d.from_dense(conv, site, AdderConv2dOptions(init="normal"))


def test_an_adder_that_is_fitted_without_a_step_follows_the_convolution_and_steps_bring_it_closer() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 8, 3, padding=1), torch.randn(32, 6, 8, 8).relu()
    x = x * torch.linspace(0.1, 10, 6).view(-1, 1, 1)  # channels of very different sizes
    target = conv(x)
    random = correlation(adder(conv).differences(x), target, channel=1).mean().item()
    closed = adder(conv).fit_(conv, x, target, steps=0)
    stepped = adder(conv).fit_(conv, x, target, steps=40)
    assert abs(random) < 0.3 < 0.6 < closed < stepped


def test_groups_take_the_statistics_of_their_own_channels() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 1, groups=2)
    x = torch.randn(64, 4, 4, 4) * torch.tensor([1.0, 1.0, 50.0, 50.0]).view(-1, 1, 1)
    layer = adder(conv)
    assert layer.fit_(conv, x, conv(x), steps=0) > 0.7
    assert layer.weight[:3].abs().max() < 4 < 40 < layer.weight[3:].abs().max()


def test_an_inserted_norm_takes_scale_and_shift_of_the_target() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 6, 3), torch.randn(16, 4, 8, 8).relu()
    layer = adder(conv, normalised=False)
    layer.fit_(conv, x, conv(x), steps=0)
    layer.train()
    out, target = layer(x), conv(x)
    torch.testing.assert_close(out.mean((0, 2, 3)), target.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.std((0, 2, 3)), target.std((0, 2, 3)), rtol=1e-2, atol=1e-3)


def test_a_linear_adder_is_fitted_over_its_rows() -> None:
    torch.manual_seed(0)
    dense, x = nn.Linear(12, 5), torch.randn(16, 7, 12).relu()
    site = Site(
        path="fc", kind="linear", type="Linear", input_shape=(16, 7, 12), output_shape=(16, 7, 5), normalised=True
    )
    layer = AdderLinear.from_dense(dense, site, AdderOptions(init="normal"))
    assert layer.fit_(dense, x, dense(x), steps=30) > 0.7
