"""How an `nn.Conv2d` slides over an image: what its replacement must do too, padding in all its spellings included."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.kernels.geometry import Geometry, Pair
from reparam.ops.plain_layer import is_plain
from reparam.ops.site import Site
from reparam.trace.probe import probe

#: An operation of the owner would go on multiplying with the weight, with strides and padding of its own.
NOT_CALLED = "only its weight is read, by an operation of its owner"
#: Pads as much as the image at hand needs, as TensorFlow does; otherwise it is plain.
_SAME = "timm.layers.conv2d_same.Conv2dSame"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvForm:
    """A convolution without its weight; height comes before width.

    `padding` are zeros that the product itself adds. `around` is what must be padded before, as `F.pad` takes it, in
    `mode`; `is_same` pads zeros so that the output is the image divided by the stride, rounded up.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    around: tuple[int, int, int, int] = (0, 0, 0, 0)
    mode: str = "constant"
    is_same: bool = False

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "ConvForm":
        """The form of a convolution that `refuse_conv2d` does not refuse."""
        kernel, stride, dilation = _pair(conv.kernel_size), _pair(conv.stride), _pair(conv.dilation)
        is_same = _type(conv) == _SAME
        total = [d * (k - 1) if conv.padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        around = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
        padding = (0, 0) if is_same or isinstance(conv.padding, str) else _pair(conv.padding)
        if conv.padding == "same" and around[0] == around[1] and around[2] == around[3]:
            padding, around = (around[2], around[0]), (0, 0, 0, 0)
        if conv.padding_mode != "zeros":
            around = around if any(around) else (padding[1], padding[1], padding[0], padding[0])
            padding = (0, 0)
        return cls(
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=conv.groups,
            around=around,
            mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode,
            is_same=is_same,
        )

    def geometry(self, *, inputs: int, outputs: int) -> Geometry:
        """The sizes of a weight between so many channels, on one image of its own size."""
        return Geometry(
            batch=1,
            image=self.kernel,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            in_channels=inputs // self.groups,
            out_channels=outputs // self.groups,
        )

    def prepared(self, x: Tensor) -> Tensor:
        """The images (B, C, H, W) with what must be padded before the product."""
        around = self._around(x.shape)
        return F.pad(x, around, mode=self.mode) if any(around) else x

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The dense product of prepared images."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def rows(self, x: Tensor) -> Tensor:
        """The patches of prepared images that each group multiplies by its weights: (groups, B * OH * OW, I)."""
        patches = F.unfold(x, self.kernel, dilation=self.dilation, padding=self.padding, stride=self.stride)
        by_group: Tensor = patches.unflatten(1, (self.groups, -1))
        return by_group.permute(1, 0, 3, 2).flatten(1, 2)

    def output(self, input_shape: tuple[int, ...]) -> Pair:
        """Height and width of the output."""
        left, right, top, bottom = self._around(input_shape)
        height, width = (
            (side + 2 * self.padding[d] - self.dilation[d] * (self.kernel[d] - 1) - 1) // self.stride[d] + 1
            for d, side in enumerate((input_shape[2] + top + bottom, input_shape[3] + left + right))
        )
        return height, width

    def outputs(self, input_shape: tuple[int, ...]) -> int:
        """How many places of all images have an output."""
        return input_shape[0] * math.prod(self.output(input_shape))

    def _around(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self.is_same:
            return self.around
        found: list[int] = []
        for d in (1, 0):
            side, stride = shape[2 + d], self.stride[d]
            total = max(0, (math.ceil(side / stride) - 1) * stride + self.dilation[d] * (self.kernel[d] - 1) + 1 - side)
            found += [total // 2, total - total // 2]
        return tuple(found)


class ConvAttributes:
    """What models read off an `nn.Conv2d` without calling it, such as DaViT's `proj.kernel_size`, by its `form`."""

    form: ConvForm

    @property
    def kernel_size(self) -> Pair:
        """Height and width of the kernel."""
        return self.form.kernel

    @property
    def stride(self) -> Pair:
        """Pixels from one output to the next."""
        return self.form.stride

    @property
    def padding(self) -> Pair:
        """Zeros that the product adds on each side."""
        return self.form.padding

    @property
    def dilation(self) -> Pair:
        """Pixels between the taps of the kernel."""
        return self.form.dilation

    @property
    def groups(self) -> int:
        """Parts that the channels fall into."""
        return self.form.groups


def refuse_conv2d(site: Site, dense: nn.Module) -> str | None:
    """Why no operator can stand for a convolution, in words for the plan: its weight or its forward is not its own."""
    assert isinstance(dense, nn.Conv2d)
    if not site.is_called:
        return NOT_CALLED
    if site.shared_with:
        return f'its weight is shared with "{site.shared_with[0]}", which would stay dense'
    if len(site.input_shape) == 3:
        return f"its input {site.input_shape} is one image without a batch axis"
    if type(dense) is nn.Conv2d or _type(dense) == _SAME or _is_plain_conv2d(dense, site.input_shape):
        return None
    return f"{site.type} is not torch.nn.Conv2d; its own forward would be lost"


def _is_plain_conv2d(conv: nn.Conv2d, input_shape: tuple[int, ...]) -> bool:
    """Whether its forward is the operation on its weight, with the strides, padding and groups that it says it has."""
    if conv.padding_mode != "zeros" or not is_plain(conv, "conv2d", input_shape):
        return False
    (op,) = probe(conv, torch.empty(input_shape, device="meta")).ops
    sizes = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
    used = [op.argument(at, name, default) for at, (name, default) in enumerate(sizes, start=3)]
    return [_broad(size) for size in used] == [_broad(getattr(conv, name)) for name, _ in sizes]


def _broad(size: int | str | Sequence[int]) -> tuple[int, ...] | str:
    """One size for both directions, or one of each."""
    if isinstance(size, str):
        return size
    return (size, size) if isinstance(size, int) else tuple(size) * (2 // len(size))


def _pair(value: tuple[int, ...] | str) -> Pair:
    assert not isinstance(value, str)
    return value[0], value[1]


def _type(conv: nn.Module) -> str:
    return f"{type(conv).__module__}.{type(conv).__qualname__}"
