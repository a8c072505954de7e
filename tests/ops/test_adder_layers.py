"""adder_conv2d and adder_linear against broadcast differences; their norm, learning rates and starting weights."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.ops.adder_conv2d import AdderConv2d, AdderConv2dOptions
from reparam.ops.adder_init import slope_matched
from reparam.ops.adder_layer import NO_NORM, AdderLayer, AdderOptions
from reparam.ops.adder_linear import AdderLinear
from reparam.ops.conv_examples import conv_site
from reparam.ops.conv_form import NOT_CALLED
from reparam.ops.site import Site

FORMS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "strided groups": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
    "depthwise, dilated": lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False),
    "reflected": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"),
}


def adder_conv(conv: nn.Conv2d, *, normalised: bool = True, **options: Any) -> AdderConv2d:
    return AdderConv2d.from_dense(conv, conv_site(conv, normalised=normalised), AdderConv2dOptions(**options))


def linear_site(linear: nn.Linear, **changes: Any) -> Site:
    site = Site(
        path="fc",
        kind="linear",
        type="torch.nn.modules.linear.Linear",
        input_shape=(2, linear.in_features),
        output_shape=(2, linear.out_features),
        normalised=True,
    )
    return site.model_copy(update=changes)


def adder_linear(linear: nn.Linear, *, normalised: bool = True, **options: Any) -> AdderLinear:
    return AdderLinear.from_dense(linear, linear_site(linear, normalised=normalised), AdderOptions(**options))


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 8, 7, generator=torch.Generator().manual_seed(seed))


def tokens(*leading: int, seed: int = 0) -> Tensor:
    return torch.randn(*leading, 8, generator=torch.Generator().manual_seed(seed))


def by_definition(conv: nn.Conv2d, weight: Tensor, x: Tensor) -> Tensor:
    """-sum_k |w - x| + b, every difference written out, group by group."""
    vertical, horizontal = (int(p) for p in conv.padding)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, (horizontal, horizontal, vertical, vertical), mode=mode)
    out = []
    for part, rows in zip(padded.chunk(conv.groups, dim=1), weight.chunk(conv.groups), strict=True):
        patches = F.unfold(part, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)  # type: ignore[arg-type]
        out.append(-(rows.flatten(1)[None, :, :, None] - patches[:, None]).abs().sum(2))
    bias = torch.zeros(len(weight)) if conv.bias is None else conv.bias
    return torch.cat(out, dim=1).unflatten(2, conv(x).shape[2:]) + bias.view(-1, 1, 1)


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("init", ["slope", "normal"])
def test_a_convolution_sums_negative_distances(make: Callable[[], nn.Conv2d], init: str) -> None:
    torch.manual_seed(0)
    conv = make()
    layer, x = adder_conv(conv, init=init), images()
    torch.testing.assert_close(layer(x), by_definition(conv, layer.weight, x), rtol=1e-5, atol=1e-4)
    # Nothing but a distance: moving inputs and weights together changes nothing where nothing is padded.
    if conv.padding == (0, 0):
        moved = adder_conv(conv, init=init)
        with torch.no_grad():
            moved.weight.copy_(layer.weight + 1)
        torch.testing.assert_close(moved(x + 1), layer(x), rtol=1e-4, atol=1e-4)


def test_padded_pixels_count_unless_they_are_masked() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    plain, masked, x = adder_conv(conv), adder_conv(conv, mask=True), images()
    torch.testing.assert_close(masked(x)[..., 1:-1, 1:-1], plain(x)[..., 1:-1, 1:-1])
    corner = plain.weight.abs().sum(1).flatten(1)[:, [0, 1, 2, 3, 6]].sum(1)
    torch.testing.assert_close(masked(x)[:, :, 0, 0], plain(x)[:, :, 0, 0] + corner, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leading", [(4,), (2, 3), (2, 3, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_sums_negative_distances_of_vectors_and_tokens(leading: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = adder_linear(nn.Linear(8, 5, bias=bias)), tokens(*leading)
    expected = -(x.unsqueeze(-2) - layer.weight).abs().sum(-1)
    if layer.bias is not None:
        expected = expected + layer.bias
    assert layer(x).shape == (*leading, 5)
    torch.testing.assert_close(layer(x), expected)


def test_a_pointwise_convolution_is_the_linear_layer_on_channels() -> None:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(8, 5, 1), nn.Linear(8, 5)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)  # type: ignore[arg-type]
    x = tokens(2, 3, 4).movedim(-1, 1)
    torch.testing.assert_close(adder_conv(conv)(x).movedim(1, -1), adder_linear(linear)(x.movedim(1, -1)))


# -- the normalisation behind


def test_an_inserted_norm_is_a_batch_norm_that_normalises() -> None:
    torch.manual_seed(0)
    conv = adder_conv(nn.Conv2d(4, 6, 3), normalised=False)
    linear = adder_linear(nn.Linear(8, 5), normalised=False)
    assert type(conv.norm) is nn.BatchNorm2d
    assert type(linear.norm) is nn.BatchNorm1d
    for layer, x, axes in ((conv, images(), (0, 2, 3)), (linear, tokens(6, 3), (0, 1))):
        layer.norm.momentum = 1.0  # type: ignore[assignment]
        out = layer.train()(x)
        torch.testing.assert_close(out.mean(axes), torch.zeros(out.numel() // math.prod(out.shape[a] for a in axes)))
        torch.testing.assert_close(out.var(axes, correction=0), torch.ones_like(out.mean(axes)), rtol=1e-3, atol=1e-3)
        raw = layer.differences(x)
        assert raw.mean() < -1
        torch.testing.assert_close(layer.eval()(x), out, rtol=0.05, atol=0.05)


def test_where_the_models_own_norm_follows_none_is_inserted() -> None:
    for layer in (adder_conv(nn.Conv2d(4, 6, 3)), adder_linear(nn.Linear(8, 5))):
        assert type(layer.norm) is nn.Identity
        assert sorted(layer.state_dict()) == ["bias", "weight"]


def test_the_plan_says_where_a_norm_is_inserted() -> None:
    conv, linear = nn.Conv2d(4, 6, 3), nn.Linear(8, 5)
    for normalised, remark in ((True, None), (False, "a batch norm is inserted behind it")):
        site = conv_site(conv, normalised=normalised)
        assert AdderConv2d.remark(site, AdderConv2dOptions()) == remark
        assert AdderLinear.remark(linear_site(linear, normalised=normalised), AdderOptions()) == remark


@pytest.mark.parametrize(
    ("changes", "norm", "words"),
    [
        ({}, "require", None),
        ({"normalised": False}, "insert", None),
        ({"normalised": False}, "require", NO_NORM),
        ({"is_called": False}, "insert", NOT_CALLED),
        (
            {"shared_with": ("embed",), "normalised": False},
            "require",
            'its weight is shared with "embed", which would stay dense',
        ),
    ],
    ids=str,
)
def test_a_site_is_refused_in_words(changes: dict[str, Any], norm: Any, words: str | None) -> None:
    conv, linear = nn.Conv2d(4, 6, 3), nn.Linear(8, 5)
    site = conv_site(conv).model_copy(update=changes)
    assert AdderConv2d.refuse(site, conv, AdderConv2dOptions(norm=norm)) == words
    assert AdderLinear.refuse(linear_site(linear, **changes), linear, AdderOptions(norm=norm)) == words


def test_a_linear_layer_with_a_forward_of_its_own_is_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    site = linear_site(nn.Linear(8, 5), type="user.Doubled")
    words = "user.Doubled is not torch.nn.Linear; its own forward would be lost"
    assert AdderLinear.refuse(site, Doubled(8, 5), AdderOptions()) == words


# -- the adaptive learning rate


def both_kinds(**options: Any) -> list[tuple[AdderLayer, Callable[[int], Tensor]]]:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(8, 5)
    return [(adder_conv(conv, **options), images), (adder_linear(linear, **options), lambda n: tokens(2, 3, seed=n))]


def backward(layer: AdderLayer, x: Tensor, *, scale: float = 1.0) -> None:
    """Of a fixed random loss."""
    out = layer(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3)) * scale).sum().backward()


def gradient_of(layer: AdderLayer, x: Tensor, *, scale: float = 1.0) -> Tensor:
    layer.zero_grad()
    backward(layer, x, scale=scale)
    assert layer.weight.grad is not None
    return layer.weight.grad.clone()


def norm_of(gradient: Tensor) -> float:
    return float(gradient.norm() / math.sqrt(gradient.numel()))


def test_the_step_is_told_of_the_weight_only_where_it_is_to_scale() -> None:
    for lr, told in (("step", {"weight": 0.3}), ("backward", {}), ("plain", {})):
        for layer, _ in both_kinds(lr=lr, eta=0.3):
            assert dict(layer.step_gradients()) == told


@pytest.mark.parametrize("scale", [1e-3, 1.0, 65536.0], ids=str)
def test_backward_gives_the_weight_gradient_its_norm_whatever_the_loss_scale(scale: float) -> None:
    for eta in (0.2, 0.5):
        for (layer, inputs), (plain, _) in zip(both_kinds(lr="backward", eta=eta), both_kinds(lr="plain"), strict=True):
            scaled, raw = gradient_of(layer, inputs(0), scale=scale), gradient_of(plain, inputs(0))
            assert norm_of(scaled) == pytest.approx(eta, rel=1e-4)
            torch.testing.assert_close(scaled / norm_of(scaled), raw / norm_of(raw), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lr", ["step", "plain"])
def test_the_other_choices_leave_the_gradient_to_the_loss(lr: str) -> None:
    for layer, inputs in both_kinds(lr=lr):
        once = gradient_of(layer, inputs(0))
        assert torch.equal(gradient_of(layer, inputs(0), scale=4.0), 4 * once)
        assert abs(norm_of(once) - layer.options.eta) > 0.1


def test_the_plain_gradient_is_the_published_one() -> None:
    ((_, _), (layer, inputs)) = both_kinds(lr="plain")
    x = inputs(0)
    g = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3))
    expected = (g[..., None] * (x[..., None, :] - layer.weight)).sum((0, 1))
    torch.testing.assert_close(gradient_of(layer, x), expected)


def test_accumulated_micro_batches_add_vectors_that_are_each_normalised_in_backward() -> None:
    """The published defect, kept for reproduction: what `lr = "step"` mends."""
    for (layer, inputs), (plain, _) in zip(both_kinds(lr="backward"), both_kinds(lr="plain"), strict=True):
        first, second = (gradient_of(plain, inputs(seed), scale=scale) for seed, scale in ((0, 1.0), (1, 100.0)))
        for seed, scale in ((0, 1.0), (1, 100.0)):
            backward(layer, inputs(seed), scale=scale)
        got = layer.weight.grad
        assert got is not None
        expected = 0.2 * (first / norm_of(first) + second / norm_of(second))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        summed = first + second
        assert (got / norm_of(got) - summed / norm_of(summed)).abs().max() > 0.1


def test_a_gradient_of_zero_stays_zero() -> None:
    for layer, inputs in both_kinds(lr="backward"):
        assert gradient_of(layer, inputs(0), scale=0.0).abs().max() == 0


# -- weights from those of the dense layer


def slopes(weight: Tensor, gain: float) -> Tensor:
    """The dense weight over its channel's root mean square, clipped: what the adder is to multiply by on average."""
    size = weight.double().square().flatten(1).mean(1).sqrt().view(-1, *[1] * (weight.ndim - 1))
    return (weight.double() / (gain * size)).clamp(-0.999, 0.999)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    mean=st.floats(-3, 3),
    std=st.floats(0.05, 5),
    gain=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
)
def test_the_regression_slope_of_a_distance_is_the_dense_weight(
    seed: int, mean: float, std: float, gain: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(3, 2, 2, 1, generator=generator) * torch.tensor([0.01, 1.0, 30.0]).view(-1, 1, 1, 1)
    adder = slope_matched(dense, mean=mean, std=std, gain=gain)
    x = mean + std * torch.randn(100_000, dtype=torch.float64, generator=generator)
    centred = x - x.mean()
    found = -(adder.double().flatten()[:, None] - x).abs() @ centred / (centred @ centred)
    torch.testing.assert_close(found, slopes(dense, gain).flatten(), rtol=0, atol=0.02)


def test_the_statistics_of_each_input_channel_count() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(2, 3, generator=generator)
    mean, std = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.1, 4.0])
    adder = slope_matched(dense, mean=mean, std=std, gain=1.0)
    for channel in range(3):
        alone = slope_matched(dense, mean=float(mean[channel]), std=float(std[channel]), gain=1.0)
        torch.testing.assert_close(adder[:, channel], alone[:, channel])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-6, 1e6), gain=st.sampled_from([0.25, 1.0, 2.0]))
def test_the_size_of_a_channel_changes_nothing(seed: int, scale: float, gain: float) -> None:
    dense = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
    adder = slope_matched(dense, mean=0.4, std=0.6, gain=gain)
    scaled = slope_matched(dense * torch.tensor([[scale], [1.0]]), mean=0.4, std=0.6, gain=gain)
    torch.testing.assert_close(scaled, adder, rtol=1e-4, atol=1e-4)
    joined = (dense * torch.tensor([[10.0], [1.0]])).view(1, 10)  # one channel of ten weights
    assert not torch.allclose(slope_matched(joined, mean=0.4, std=0.6, gain=gain), adder.view(1, 10))


def test_opposite_weights_lie_opposite_around_the_mean() -> None:
    dense = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    above, below = (slope_matched(sign * dense, mean=0.4, std=0.6, gain=1.0) - 0.4 for sign in (1, -1))
    torch.testing.assert_close(above, -below)
    assert torch.equal(above > 0, dense > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_channel_of_zeros_starts_at_the_mean_and_a_lone_weight_is_finite(dtype: torch.dtype) -> None:
    dense = torch.tensor([[0.0, 0.0, 0.0], [0.0, 5.0, 0.0]], dtype=dtype)
    adder = slope_matched(dense, mean=0.5, std=1.0, gain=0.1)
    assert adder.dtype == dtype
    assert adder[0].tolist() == [0.5] * 3
    assert torch.isfinite(adder).all()
    assert adder[1, 1] > 3


def test_a_layer_starts_from_slopes_for_a_rectified_input_or_at_random() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3)
    x = torch.randn(100_000, dtype=torch.float64).relu()
    expected = slope_matched(conv.weight, mean=float(x.mean()), std=float(x.std()), gain=0.5)
    torch.testing.assert_close(adder_conv(conv, gain=0.5).weight.detach(), expected, rtol=0.02, atol=0.02)
    drawn = adder_conv(nn.Conv2d(64, 64, 3), init="normal").weight.detach()
    assert abs(float(drawn.mean())) < 0.02
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.02)


def test_a_bias_is_carried_over() -> None:
    conv, linear = nn.Conv2d(4, 6, 3), nn.Linear(8, 5)
    assert torch.equal(adder_conv(conv).bias, conv.bias)  # type: ignore[arg-type]
    assert torch.equal(adder_linear(linear).bias, linear.bias)  # type: ignore[arg-type]
    assert adder_linear(nn.Linear(8, 5, bias=False)).bias is None


# -- counts


def test_hand_counted_operations_of_a_strided_grouped_convolution_and_of_a_linear_layer() -> None:
    conv = adder_conv(nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2))
    # Of 9 x 8 pixels 5 x 7 outputs; of 4 channels each output reads 2, at 6 places.
    outputs, differences = 2 * 6 * 5 * 7, 2 * 6 * 5 * 7 * 12
    assert conv.op_count((2, 4, 9, 8)).as_dict() == {"add.f32": 2 * differences + outputs, "cmp.f32": differences}
    linear = adder_linear(nn.Linear(8, 5, bias=False))
    assert linear.op_count((2, 3, 8)).as_dict() == {"add.f32": 2 * 240, "cmp.f32": 240}
    assert adder_linear(nn.Linear(8, 5)).op_count((2, 3, 8)).as_dict() == {"add.f32": 2 * 240 + 30, "cmp.f32": 240}
