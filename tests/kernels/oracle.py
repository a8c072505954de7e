"""The adder convolution as published, from unfolded patches, and its gradients as formulas: every difference exists.

    Y[o, p]  = -sum_k |W[o, k] - X[k, p]|
    dL/dW    = sum_p g[o, p] (X[k, p] - W[o, k])
    dL/dX    = sum_o g[o, p] HardTanh(W[o, k] - X[k, p]), folded back into the image

Shapes as in `reparam.ops.adder_function`: channels first, any float type. Padded pixels are zeros, or with `mask` none.
"""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reparam.kernels.geometry import Geometry, Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One convolution: its sizes, and the seed of its tensors."""

    batch: int = 2
    image: Pair = (6, 5)
    channels: Pair = (4, 6)  # of one group: read, written
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    mask: bool = False
    seed: int = 0

    @property
    def output(self) -> Pair:
        """Height and width of the output."""
        height, width = (
            (self.image[d] + 2 * self.padding[d] - self.dilation[d] * (self.kernel[d] - 1) - 1) // self.stride[d] + 1
            for d in (0, 1)
        )
        return height, width

    @property
    def sizes(self) -> tuple[Pair, Pair, Pair, int]:
        """Stride, padding, dilation and groups, as the operators take them."""
        return self.stride, self.padding, self.dilation, self.groups

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x (B, I, H, W), a weight (O, I / groups, KH, KW) and a gradient (B, O, OH, OW)."""
        generator = torch.Generator().manual_seed(self.seed)
        read, written = (self.groups * number for number in self.channels)
        shapes = (
            (self.batch, read, *self.image),
            (written, self.channels[0], *self.kernel),
            (self.batch, written, *self.output),
        )
        x, weight, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
        return x.to(dtype), weight.to(dtype), gradient.to(dtype)

    def geometry(self, x: Tensor, weight: Tensor) -> Geometry:
        """Of channels-first images."""
        return Geometry.of(x.permute(0, 2, 3, 1), weight, *self.sizes)


@st.composite
def cases(draw: st.DrawFn, *, most_channels: int = 40, mask: bool = False) -> Case:
    """Depthwise and grouped, rectangular, strided, padded and dilated convolutions with at least one output."""

    def pairs(low: int, high: int) -> Pair:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5, 17]))
    most = max(1, most_channels // groups)
    is_depthwise = groups > 1 and draw(st.booleans())
    case = Case(
        batch=draw(st.integers(1, 3)),
        image=pairs(1, 8),
        channels=(1, draw(st.integers(1, 2))) if is_depthwise else pairs(1, most),
        kernel=pairs(1, 4),
        stride=pairs(1, 3),
        padding=pairs(0, 3),
        dilation=pairs(1, 3),
        groups=groups,
        mask=mask and draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
    short = [max(0, 1 - size) * step for size, step in zip(case.output, case.stride, strict=True)]
    return replace(case, image=(case.image[0] + short[0], case.image[1] + short[1]))


def forward(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    """Returns Y (B, O, OH, OW)."""
    y = -_differences(x, weight, case).abs().sum(3)
    return y.reshape(len(x), len(weight), *case.output)


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, case: Case) -> Tensor:
    """Returns the surrogate dL/dW (O, I / groups, KH, KW), without an adaptive learning rate."""
    return -(_differences(x, weight, case) * _by_group(gradient, case)).sum((0, 4)).reshape(weight.shape)


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, case: Case) -> Tensor:
    """Returns the surrogate dL/dX (B, I, H, W)."""
    return _folded(_clipped(x, weight, case) * _by_group(gradient, case), case)


def input_gradient_size(gradient: Tensor, x: Tensor, weight: Tensor, case: Case) -> Tensor:
    """What `input_gradient` would be without cancellation: what its rounding errors are measured by."""
    return _folded((_clipped(x, weight, case) * _by_group(gradient, case)).abs(), case)


def _differences(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    """W - X as (B, G, O, K, P), zero where a masked pixel is read."""
    patches = _unfold(x, case).unflatten(1, (case.groups, -1))
    differences = weight.unflatten(0, (case.groups, -1)).flatten(2).unsqueeze(-1) - patches.unsqueeze(2)
    return differences * _unfold(torch.ones_like(x[:1, : case.channels[0]]), case) if case.mask else differences


def _clipped(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    return F.hardtanh(_differences(x, weight, case))


def _by_group(gradient: Tensor, case: Case) -> Tensor:
    return gradient.flatten(2).unflatten(1, (case.groups, -1)).unsqueeze(3)


def _unfold(x: Tensor, case: Case) -> Tensor:
    return F.unfold(x, case.kernel, dilation=case.dilation, padding=case.padding, stride=case.stride)


def _folded(terms: Tensor, case: Case) -> Tensor:
    """Sums (B, G, O, K, P) over the outputs, and over the patches in which a pixel appears."""
    by_patch = terms.sum(2).flatten(1, 2)
    return F.fold(by_patch, case.image, case.kernel, dilation=case.dilation, padding=case.padding, stride=case.stride)
