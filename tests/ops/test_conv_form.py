"""The form of a convolution against the modules: padding in every spelling, and which forwards it stands for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from reparam.errors import PlanError
from reparam.ops.adder_conv2d import AdderConv2d
from reparam.ops.base import Operator
from reparam.ops.conv_examples import conv_site
from reparam.ops.conv_form import ConvForm, refuse_conv2d
from reparam.ops.shift_adder_conv2d import ShiftAdderConv2d
from reparam.ops.shift_conv2d import ShiftConv2d
from tests.pico import plan_for, recipe

SPELLINGS: dict[str, Callable[[], nn.Conv2d]] = {
    "valid": lambda: nn.Conv2d(4, 6, 3),
    "valid in words": lambda: nn.Conv2d(4, 6, (3, 2), padding="valid"),
    "one figure": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "two figures": lambda: nn.Conv2d(4, 6, (3, 5), padding=(0, 2)),
    "one in a list": lambda: nn.Conv2d(4, 6, 3, padding=[1, 2]),  # type: ignore[arg-type]
    "more than the kernel": lambda: nn.Conv2d(4, 6, 2, padding=3),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "unequal strides": lambda: nn.Conv2d(4, 6, (2, 3), stride=(3, 1), padding=(1, 0)),
    "patches": lambda: nn.Conv2d(4, 6, 4, stride=4),
    "dilated": lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 2), dilation=(1, 3)),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "same, dilated and grouped": lambda: nn.Conv2d(4, 4, (3, 5), padding="same", dilation=(2, 1), groups=4),
    "same, pointwise": lambda: nn.Conv2d(4, 6, 1, padding="same"),
    "same, evenly dilated even kernel": lambda: nn.Conv2d(4, 6, 2, padding="same", dilation=2),
    "reflect": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), padding_mode="reflect"),
    "reflect, same": lambda: nn.Conv2d(4, 6, (3, 4), padding="same", padding_mode="reflect"),
    "reflect, valid": lambda: nn.Conv2d(4, 6, 3, padding="valid", padding_mode="reflect"),
    "reflect, nothing to pad": lambda: nn.Conv2d(4, 6, 3, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 6, 3, padding=(2, 0), padding_mode="replicate"),
    "replicate, same": lambda: nn.Conv2d(4, 6, 2, padding="same", padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, padding_mode="circular", groups=2),
    "circular, same": lambda: nn.Conv2d(4, 6, (4, 3), padding="same", padding_mode="circular"),
    "as TensorFlow": lambda: Conv2dSame(4, 6, 3),
    "as TensorFlow, strided": lambda: Conv2dSame(4, 6, 3, stride=2),
    "as TensorFlow, unequal": lambda: Conv2dSame(4, 6, (2, 5), stride=(3, 2), groups=2),
    "as TensorFlow, dilated": lambda: Conv2dSame(4, 4, 3, stride=2, dilation=2, groups=4),
    "as TensorFlow, skipping": lambda: Conv2dSame(4, 6, 1, stride=3),
}
#: torch adds the missing row or column to a copy of its own and pads the rest inside the product: sums round otherwise.
UNEVEN: dict[str, Callable[[], nn.Conv2d]] = {
    "even kernel": lambda: nn.Conv2d(4, 6, 2, padding="same"),
    "even and odd": lambda: nn.Conv2d(4, 6, (4, 3), padding="same"),
    "dilated and grouped": lambda: nn.Conv2d(4, 4, (3, 2), padding="same", dilation=(1, 3), groups=2),
}
SIDES = [(6, 6), (7, 7), (9, 6), (5, 12), (8, 11)]
each_size = pytest.mark.parametrize("sides", SIDES, ids=str)


def made(make: Callable[[], nn.Conv2d], sides: tuple[int, int]) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    return make(), torch.randn(2, 4, *sides)


def by_form(conv: nn.Conv2d, x: Tensor) -> Tensor:
    form = ConvForm.of(conv)
    return form.conv2d(form.prepared(x), conv.weight, conv.bias)


@each_size
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_form_gives_the_bits_of_the_convolution(spelling: str, sides: tuple[int, int]) -> None:
    conv, x = made(SPELLINGS[spelling], sides)
    assert torch.equal(by_form(conv, x), conv(x))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@each_size
@pytest.mark.parametrize("spelling", UNEVEN)
def test_a_row_that_only_one_side_gets_is_on_the_right_side(spelling: str, sides: tuple[int, int]) -> None:
    conv, x = made(UNEVEN[spelling], sides)
    torch.testing.assert_close(by_form(conv, x), conv(x), rtol=0, atol=1e-6)
    flipped = conv(x.flip(2, 3)).flip(2, 3)
    assert (by_form(conv, x) - flipped).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@each_size
@pytest.mark.parametrize("make", (SPELLINGS | UNEVEN).values(), ids=SPELLINGS | UNEVEN)
def test_the_number_of_outputs_is_that_of_a_run(make: Callable[[], nn.Conv2d], sides: tuple[int, int]) -> None:
    conv, x = made(make, sides)
    form, out = ConvForm.of(conv), conv(x)
    assert form.output(x.shape) == out.shape[2:]
    assert form.outputs(x.shape) == 2 * out.shape[2] * out.shape[3]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_padding_mode_is_not_taken_for_zeros(mode: str) -> None:
    conv, x = made(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode), (6, 6))  # type: ignore[arg-type]
    zeros = F.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(by_form(conv, x)[..., 1:-1, 1:-1], zeros[..., 1:-1, 1:-1])
    assert (by_form(conv, x) - zeros).abs().max() > 0.1


def test_what_is_padded_inside_the_product_is_not_copied_before_it() -> None:
    for spelling in ("valid", "one figure", "same", "reflect, nothing to pad"):
        conv, x = made(SPELLINGS[spelling], (6, 6))
        assert ConvForm.of(conv).prepared(x) is x


def test_the_site_of_an_example_has_the_shapes_of_a_run() -> None:
    conv, _ = made(SPELLINGS["strided"], (9, 9))
    site = conv_site(conv, side=9)
    assert (site.input_shape, site.output_shape) == ((2, 4, 9, 9), (2, 6, 5, 5))
    assert site.type == "torch.nn.modules.conv.Conv2d"


class Renamed(nn.Conv2d):
    def __init__(self, width: int) -> None:
        super().__init__(width, 6, 3, stride=2, padding=1, bias=False)


class Rewritten(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        sizes = {"padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return F.conv2d(input, self.weight, self.bias, self.stride, **sizes)  # type: ignore[arg-type]


class Written(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input=input, weight=self.weight, bias=self.bias, padding=1)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class SumOfTwo(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + super().forward(input.flip(-1))


def refusal(conv: nn.Conv2d, **changes: Any) -> str | None:
    return refuse_conv2d(conv_site(conv).model_copy(update=changes), conv)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding_mode="circular", padding=1),
        Conv2dSame(4, 6, 3, stride=2),
        Renamed(4),
        Rewritten(4, 6, 3, stride=(2, 1), padding=1, dilation=2, groups=2),
        Rewritten(4, 6, 3, padding="same"),
        Written(4, 6, 3, padding=1),
    ],
    ids=lambda conv: type(conv).__name__,
)
def test_a_convolution_and_a_subclass_that_is_one_and_no_more_are_taken(conv: nn.Conv2d) -> None:
    assert refusal(conv) is None


@pytest.mark.parametrize(
    "conv",
    [
        Doubled(4, 6, 3),
        SumOfTwo(4, 6, 3),
        StdConv2d(4, 6, 3),
        ScaledStdConv2d(4, 6, 3),
        weight_norm(nn.Conv2d(4, 6, 3)),
        Rewritten(4, 6, 3, padding=1, padding_mode="reflect"),
        Written(4, 6, 3, padding=0),
        Written(4, 6, 3, stride=2, padding=1),
        Written(4, 6, 3, padding=1, dilation=2),
    ],
    ids=lambda conv: type(conv).__name__,
)
def test_a_convolution_whose_forward_does_something_else_is_refused(conv: nn.Conv2d) -> None:
    kind = f"{type(conv).__module__}.{type(conv).__qualname__}"
    assert refusal(conv) == f"{kind} is not torch.nn.Conv2d; its own forward would be lost"


def test_a_tied_convolution_is_refused_and_its_partner_named() -> None:
    assert refusal(nn.Conv2d(4, 6, 3), shared_with=("a.conv", "b")) == (
        'its weight is shared with "a.conv", which would stay dense'
    )


@pytest.mark.parametrize("operator", ["shift_conv2d", "adder_conv2d", "shift_adder_conv2d"])
def test_an_image_without_a_batch_axis_is_refused(operator: str) -> None:
    assert refusal(nn.Conv2d(4, 6, 3), input_shape=(4, 8, 8)) == "its input (4, 8, 8) is one image without a batch axis"
    rules = recipe([{"match": {"kind": "conv2d"}, "operator": operator}])
    with pytest.raises(PlanError, match="without a batch axis"):
        plan_for(nn.Sequential(nn.Conv2d(3, 4, 3)), rules, torch.zeros(3, 8, 8))


@pytest.mark.parametrize("operator", [ShiftConv2d, AdderConv2d, ShiftAdderConv2d])
def test_what_models_read_off_a_convolution_is_still_there(operator: type[Operator]) -> None:
    example = next(example for example in operator.examples() if example.refusal is None)
    dense = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    layer = operator.from_dense(dense, example.site, example.options)
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "in_channels", "out_channels"):
        assert getattr(layer, name) == getattr(dense, name)
