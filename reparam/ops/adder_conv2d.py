"""adder_conv2d: a convolution whose products are absolute differences, so that it only adds.

    Y[o, p] = -sum_k |W[o, k] - X[k, p]| + b[o]         (gradients: `adder_function.py`)

Its outputs are large and negative, so a normalisation must read them: the model's own, or an inserted batch norm.
Source: AdderNet, arXiv:1912.13200. Repaired: exact input gradients at every stride; groups, rectangles, dilation.
Shapes: X (B, I, H, W), W (O, I / groups, KH, KW), Y (B, O, OH, OW).
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.ops.adder_function import adder_conv2d
from reparam.ops.adder_layer import NO_NORM, SMALLEST_STD, AdderLayer, AdderOptions, refuse_bare
from reparam.ops.base import Example, operator
from reparam.ops.conv_examples import conv_example, refused_examples
from reparam.ops.conv_form import ConvAttributes, ConvForm, refuse_conv2d
from reparam.ops.site import Site


class AdderConv2dOptions(AdderOptions):
    """Options of `adder_conv2d`."""

    mask: bool = Field(False, description="Leave padded pixels out; they count -|w| otherwise, as published.")


@operator("adder_conv2d", kind="conv2d", source="arXiv:1912.13200")
class AdderConv2d(AdderLayer, ConvAttributes):
    """Y = norm(-sum |W - X| + b).  Before: n mul + n add.  After: 2 n add + n absolute values.

    `norm` is the identity where the model's own normalisation follows.
    """

    Options = AdderConv2dOptions
    options: AdderConv2dOptions

    def __init__(
        self, weight: Tensor, bias: Tensor | None, form: ConvForm, options: AdderConv2dOptions, *, norm: nn.Module
    ) -> None:
        super().__init__(weight, bias, options, norm=norm)
        self.form = form
        self.out_channels, self.in_channels = len(weight), weight.shape[1] * form.groups

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, OH, OW)."""
        normalised: Tensor = self.norm(self.differences(x))
        return normalised

    def differences(self, x: Tensor) -> Tensor:
        """The output before the normalisation (B, O, OH, OW)."""
        x, form = self.form.prepared(x), self.form
        if x.is_meta:
            # Only the shape is asked for, and a recorder sees what depends on what.
            return form.conv2d(x, self.weight, self.bias)
        return adder_conv2d(
            x,
            self.used_weight(),
            self.bias,
            stride=form.stride,
            padding=form.padding,
            dilation=form.dilation,
            groups=form.groups,
            mask=self.options.mask,
        )

    def fit_(self, dense: nn.Module, x: Tensor, target: Tensor, *, steps: int) -> float:
        """As `AdderLayer.fit_to`, with the statistics of each input channel."""
        assert isinstance(dense, nn.Conv2d)
        std, mean = torch.std_mean(x.float(), dim=(0, 2, 3))
        mean, std = (_of_each_output(t, dense) for t in (mean, std.clamp_min(SMALLEST_STD)))
        return self.fit_to(dense.weight, x, target, mean=mean, std=std, steps=steps, channel=1)

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: AdderConv2dOptions) -> str | None:
        """Takes what `shift_conv2d` takes where it is called as a module, and where a normalisation may follow."""
        return refuse_conv2d(site, dense) or refuse_bare(site, options)

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: AdderConv2dOptions) -> "AdderConv2d":
        """Starts from the weight of an `nn.Conv2d` as `init` says, and carries over its bias."""
        assert isinstance(dense, nn.Conv2d)
        like: dict[str, Any] = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        norm = nn.Identity() if site.normalised else nn.BatchNorm2d(dense.out_channels, **like)
        layer = cls(dense.weight, dense.bias, ConvForm.of(dense), options, norm=norm)
        return layer.requires_grad_(dense.weight.requires_grad).train(dense.training)

    def op_count(self, *input_shapes: tuple[int, ...]) -> OpCount:
        """As `AdderLayer.count`."""
        outputs = self.form.outputs(input_shapes[0]) * self.out_channels
        return self.count(outputs=outputs, depth=self.in_channels // self.form.groups * math.prod(self.form.kernel))

    @classmethod
    def examples(cls) -> list[Example]:
        """Strides, groups, paddings, both initial weights, with and without a norm; refused: ties, no norm, no call."""

        def example(name: str, *sizes: Any, refusal: str | None = None, **fields: Any) -> Example:
            place = {key: fields.pop(key) for key in ("conv", "normalised") if key in fields}
            return conv_example(name, *sizes, options=AdderConv2dOptions(**fields), refusal=refusal, **place)

        return [
            example("plain"),
            example("inserts-a-norm", normalised=False),
            example("strided-rectangle-no-bias", 4, 6, (3, 2), (2, 1), (1, 0), conv={"bias": False}),
            example("depthwise-dilated", 4, 4, 3, conv={"dilation": 2, "groups": 4, "padding": "same"}),
            example("groups", 4, 6, 3, conv={"groups": 2}),
            example("mask", mask=True),
            example("normal", init="normal", lr="plain"),
            example("released", init="normal", lr="backward"),
            example("no-norm", normalised=False, norm="require", refusal=NO_NORM),
            *refused_examples(AdderConv2dOptions()),
        ]

    def extra_repr(self) -> str:
        """Shape, for `repr`."""
        return f"{self.in_channels}, {self.out_channels}, kernel={self.form.kernel}, stride={self.form.stride}"


def _of_each_output(channels: Tensor, dense: nn.Conv2d) -> Tensor:
    """A figure of each input channel (I,), placed beside the weights that read it: (O, I / groups, 1, 1)."""
    by_group = channels.view(dense.groups, -1)
    return by_group.repeat_interleave(dense.out_channels // dense.groups, dim=0)[..., None, None]
