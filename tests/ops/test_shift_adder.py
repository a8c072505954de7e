"""shift_adder_conv2d: a shift convolution, an adder convolution of its outputs, and nothing between."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.counts import OpCount
from reparam.errors import OptionError
from reparam.ops.base import parse_options
from reparam.ops.conv_examples import conv_site
from reparam.ops.shift_adder_conv2d import ShiftAdderConv2d, ShiftAdderOptions

FORMS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "even kernel": lambda: nn.Conv2d(4, 6, 2),
    "even and odd, strided": lambda: nn.Conv2d(4, 6, (4, 3), stride=(2, 1), padding=(1, 0)),
    "patches": lambda: nn.Conv2d(4, 6, 4, stride=4),
    "pointwise, strided": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding="same", groups=4),
    "reflected": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"),
    "as TensorFlow": lambda: Conv2dSame(4, 6, 3, stride=2),
}
each_form = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)


def block(conv: nn.Conv2d, *, normalised: bool = True, **options: Any) -> ShiftAdderConv2d:
    site = conv_site(conv, normalised=normalised)
    return ShiftAdderConv2d.from_dense(conv, site, ShiftAdderOptions.model_validate(options))


def images(*, height: int = 8, width: int = 9) -> Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))


def distances(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """-sum_k |w - x| at stride 1, with zeros around so that the size stays; the odd one comes behind."""
    rows, columns = (size - 1 for size in weight.shape[2:])
    padded = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    out = []
    for part, filters in zip(padded.chunk(groups, dim=1), weight.chunk(groups), strict=True):
        patches = F.unfold(part, weight.shape[2:])  # type: ignore[arg-type]
        out.append(-(filters.flatten(1)[None, :, :, None] - patches[:, None]).abs().sum(2))
    return torch.cat(out, dim=1).view_as(x)


@each_form
def test_it_is_the_distances_of_the_shifted_convolution_with_nothing_between(make: Callable[[], nn.Conv2d]) -> None:
    torch.manual_seed(0)
    conv = make()
    layer, x = block(conv), images()
    twin = make()
    with torch.no_grad():
        twin.weight.copy_(layer.shift.weight)
        if twin.bias is not None and conv.bias is not None:
            twin.bias.copy_(conv.bias)
    shifted = twin(x)
    torch.testing.assert_close(layer(x), distances(shifted, layer.adder.weight, conv.groups), rtol=1e-5, atol=1e-4)
    for between in (shifted.relu(), F.batch_norm(shifted, None, None, training=True)):
        assert (layer(x) - distances(between, layer.adder.weight, conv.groups)).abs().max() > 0.1


def test_weights_that_would_meet_padding_alone_are_left_out_and_change_nothing_but_a_constant() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 7)  # 8x8 images become 2x2
    layer, shifted = block(conv), torch.randn(2, 6, 2, 2)
    assert layer.adder.weight.shape == (6, 6, 3, 3)
    whole = torch.randn(6, 6, 7, 7)
    whole[..., 2:5, 2:5] = layer.adder.weight.detach()
    difference = distances(shifted, whole, 1) - distances(shifted, layer.adder.weight, 1)
    torch.testing.assert_close(difference, difference[:1, :, :1, :1].expand_as(difference), rtol=1e-4, atol=1e-4)


@each_form
def test_the_adder_has_the_kernel_and_the_groups_at_stride_one_and_keeps_the_size(
    make: Callable[[], nn.Conv2d],
) -> None:
    conv = make()
    layer = block(conv)
    # Whatever reaches beyond the map of the site meets padding alone.
    sides = conv_site(conv).output_shape[2:]
    kernel = [min(size, 2 * side - 1) for size, side in zip(conv.kernel_size, sides, strict=True)]
    assert layer.adder.weight.shape == (conv.out_channels, conv.out_channels // conv.groups, *kernel)
    assert (layer.adder.form.stride, layer.adder.form.dilation) == ((1, 1), (1, 1))
    assert layer.adder.bias is None
    for height, width in ((8, 9), (9, 8), (5, 12)):
        x = images(height=height, width=width)
        assert layer(x).shape == layer.shift(x).shape == conv(x).shape


def test_a_group_of_the_adder_reads_its_own_channels_alone() -> None:
    torch.manual_seed(0)
    layer, x = block(FORMS["groups"]()), images()
    other = x.clone()
    other[:, :2] += 1.0
    changed = (layer(x) != layer(other)).flatten(2).any(2).any(0)
    assert changed.tolist() == [True] * 3 + [False] * 3


def test_one_pixel_is_enough_for_the_adder_of_a_reflecting_convolution() -> None:
    conv = FORMS["reflected"]()
    x = images(height=2, width=2)
    assert block(conv)(x).shape == conv(x).shape == (2, 6, 1, 1)


def test_the_shift_part_carries_the_weights_and_the_adder_starts_at_random() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3)
    layer = block(conv)
    torch.testing.assert_close(layer.shift.weight, conv.weight, rtol=0.42, atol=1e-4)
    assert torch.equal(layer.shift.bias, conv.bias)  # type: ignore[arg-type]
    drawn = layer.adder.weight.detach()
    assert abs(float(drawn.mean())) < 0.05
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("options", [{}, {"norm": "require"}, {"lr": "plain", "gain": 2.0}], ids=str)
def test_whatever_is_said_of_the_adder_it_has_no_slopes_to_match(options: dict[str, Any]) -> None:
    chosen = parse_options(ShiftAdderConv2d, {"adder": options}, where="here")
    assert isinstance(chosen, ShiftAdderOptions)
    assert chosen.adder.init == "normal"
    with pytest.raises(OptionError, match=r"here\.options\.adder\.init: Input should be 'normal', got 'slope'"):
        parse_options(ShiftAdderConv2d, {"adder": {"init": "slope", **options}}, where="here")


@pytest.mark.parametrize("parameterisation", ["q", "ps"])
def test_with_frozen_and_pruned_shifts_only_adders_norms_and_biases_learn(parameterisation: str) -> None:
    torch.manual_seed(0)
    frozen = {"frozen": True, "sparsity": 0.5, "parameterisation": parameterisation}
    layer = block(nn.Conv2d(4, 6, 3), normalised=False, shift=frozen)
    assert sorted(n for n, p in layer.named_parameters() if p.requires_grad) == [
        "adder.norm.bias",
        "adder.norm.weight",
        "adder.weight",
        "shift.bias",
    ]
    bare = block(nn.Conv2d(4, 6, 3, bias=False), shift=frozen)
    assert [n for n, p in bare.named_parameters() if p.requires_grad] == ["adder.weight"]
    weight, adder = layer.shift.weight.detach().clone(), layer.adder.weight.detach().clone()
    assert int((weight == 0).sum()) == weight.numel() // 2
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.train()(images()).square().sum().backward()
    optimiser.step()
    assert torch.equal(layer.shift.weight, weight)
    assert not torch.equal(layer.adder.weight, adder)


def test_free_shifts_learn_through_the_adder() -> None:
    layer = block(nn.Conv2d(4, 6, 3))
    layer(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_a_dense_layer_that_does_not_learn_gives_a_block_that_does_not() -> None:
    layer = block(nn.Conv2d(4, 6, 3).requires_grad_(False), normalised=False)
    assert not any(p.requires_grad for p in layer.parameters())


def test_a_norm_is_inserted_behind_the_adder_where_none_follows() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    layer = block(conv, normalised=False).train()
    assert type(layer.adder.norm) is nn.BatchNorm2d
    torch.testing.assert_close(layer(images()).mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)
    assert type(block(conv).adder.norm) is nn.Identity
    for normalised, remark in ((True, None), (False, "a batch norm is inserted behind it")):
        assert ShiftAdderConv2d.remark(conv_site(conv, normalised=normalised), ShiftAdderOptions()) == remark


@each_form
def test_counts_are_the_sum_of_both_layers_and_of_the_map_between_them(make: Callable[[], nn.Conv2d]) -> None:
    layer, x = block(make()), images()
    between = layer.shift(x)
    expected = layer.shift.op_count(tuple(x.shape)) + layer.adder.op_count(tuple(between.shape))
    moved = OpCount({("read", "f32"): between.numel(), ("write", "f32"): between.numel()})
    assert layer.op_count(tuple(x.shape)) == expected + moved


def test_hand_counted_operations_of_a_strided_grouped_block() -> None:
    conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2)
    # 5 x 7 outputs of 9 x 8 pixels. The shift reads 2 channels at 6 places, the adder 3.
    outputs = 2 * 6 * 5 * 7
    products, differences = outputs * 12, outputs * 18
    pruned = block(conv, shift={"frozen": True, "sparsity": 0.5})
    for layer, used in ((block(conv), products), (pruned, products // 2)):
        assert layer.op_count((2, 4, 9, 8)).as_dict() == {
            "shift.f32": used,
            "add.f32": used + outputs + 2 * differences,
            "cmp.f32": differences,
            "read.f32": outputs,
            "write.f32": outputs,
        }
