"""The sizes of a convolution on channels-last images: strides, padding, dilation, groups, and what they imply."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from reparam.errors import ReparamError

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one convolution, height before width; `in_channels` and `out_channels` are those of one group."""

    batch: int
    image: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    in_channels: int
    out_channels: int

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> "Geometry":
        """Of images x (B, H, W, groups * I) and a weight (groups * O, I, KH, KW)."""
        return cls.sized(x, weight.shape[0], weight.shape[2:], stride, padding, dilation, groups)

    @classmethod
    def sized(
        cls,
        x: Tensor,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> "Geometry":
        """Of images x (B, H, W, groups * I) and a weight of `outputs` channels, all groups together.

        Raises:
            ReparamError: the kernel spans more than the padded images.
        """
        made = cls(
            batch=x.shape[0],
            image=(x.shape[1], x.shape[2]),
            kernel=(kernel[0], kernel[1]),
            stride=(stride[0], stride[1]),
            padding=(padding[0], padding[1]),
            dilation=(dilation[0], dilation[1]),
            groups=groups,
            in_channels=x.shape[3] // groups,
            out_channels=outputs // groups,
        )
        if min(made.output) < 1:
            raise ReparamError(
                f"images of {made.image[0]} x {made.image[1]} with a padding of {made.padding} are smaller than the "
                f"{made.extent[0] + 1} x {made.extent[1] + 1} pixels that the kernel spans; give larger images"
            )
        return made

    @property
    def extent(self) -> Pair:
        """How many pixels a kernel spans, without the first."""
        return self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1)

    @property
    def output(self) -> Pair:
        """Height and width of the output."""
        return self._output(0), self._output(1)

    def _output(self, dim: int) -> int:
        return (self.image[dim] + 2 * self.padding[dim] - self.extent[dim] - 1) // self.stride[dim] + 1

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """Of the output (B, OH, OW, groups * O)."""
        return self.batch, *self.output, self.groups * self.out_channels

    @property
    def is_depthwise(self) -> bool:
        """Whether each of several groups has one input and one output."""
        return self.groups > 1 and self.in_channels == self.out_channels == 1

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Of all outputs together."""
        return self.batch * self.output[0] * self.output[1]

    def padded(self, x: Tensor) -> Tensor:
        """The images with zeros around them, contiguous."""
        rows, columns = self.padding
        return F.pad(x, (0, 0, columns, columns, rows, rows)).contiguous() if rows or columns else x.contiguous()

    def spread(self, gradient: Tensor) -> Tensor:
        """The gradient with the stride's zeros between its pixels, padded so that each input pixel has a window."""
        (height, width), (rows, columns) = self.output, self.stride
        if rows > 1 or columns > 1:
            sparse = gradient.new_zeros(
                self.batch, (height - 1) * rows + 1, (width - 1) * columns + 1, gradient.shape[3]
            )
            sparse[:, ::rows, ::columns] = gradient
            gradient = sparse
        before = [extent - padding for extent, padding in zip(self.extent, self.padding, strict=True)]
        after = [self.image[axis] + self.extent[axis] - before[axis] - gradient.shape[axis + 1] for axis in (0, 1)]
        return F.pad(gradient, (0, 0, before[1], after[1], before[0], after[0]))

    def grouped(self, weight: Tensor) -> Tensor:
        """A view (G, O, I, KH, KW) of the weight."""
        view: Tensor = weight.unflatten(0, (self.groups, self.out_channels))
        return view

    def tap(self, padded: Tensor, i: int, j: int) -> Tensor:
        """What weight (i, j) reads for each output pixel: a view (B, OH, OW, channels) of padded images."""
        (height, width), (rows, columns) = self.output, self.stride
        top, left = i * self.dilation[0], j * self.dilation[1]
        return padded[:, top : top + rows * (height - 1) + 1 : rows, left : left + columns * (width - 1) + 1 : columns]
