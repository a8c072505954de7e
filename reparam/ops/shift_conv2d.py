"""shift_conv2d: a convolution whose weights are signed powers of two, so each product is a bit shift.

    Y = conv2d(X, W') + b,   W'[o, k] in {0, +-2**p}     (`shift_weight.py` says which p)

Source: DeepShift, arXiv:1905.13298 (Q and PS); the frozen form: ShiftAddNet, arXiv:2010.12785.
Shapes: X (B, I, H, W), W (O, I / groups, KH, KW), Y (B, O, OH, OW).
"""

import math
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.counts import OpCount
from reparam.ops.base import Example, operator
from reparam.ops.conv_examples import conv_example, refused_examples
from reparam.ops.conv_form import ConvAttributes, ConvForm, refuse_conv2d
from reparam.ops.shift_layer import ShiftLayer
from reparam.ops.shift_weight import ShiftOptions
from reparam.ops.site import Site


class ShiftConv2dOptions(ShiftOptions):
    """Options of `shift_conv2d`."""

    frozen: bool = Field(False, description="Do not train shifts and signs: only what stands around them learns.")
    sparsity: float = Field(
        0.0, ge=0, lt=1, description="Share of the weights, the smallest of each layer, that are pruned to zero."
    )

    @model_validator(mode="after")
    def _pruned_weights_have_a_code(self) -> "ShiftConv2dOptions":
        if self.sparsity and not self.zero_code:
            raise ValueError("sparsity needs a code for zero; set zero_code = true")
        return self


@operator("shift_conv2d", kind="conv2d", source="arXiv:1905.13298")
class ShiftConv2d(ShiftLayer, ConvAttributes):
    """Y = conv2d(X, W') + b, W rounded to signed powers of two.  Before: n mul + n add.  After: n shift + n add.

    State as in `ShiftLayer`.
    """

    Options = ShiftConv2dOptions
    options: ShiftConv2dOptions

    def __init__(self, weight: Tensor, bias: Tensor | None, form: ConvForm, options: ShiftConv2dOptions) -> None:
        super().__init__(weight, bias, options)
        self.form = form
        self.out_channels, self.in_channels = len(weight), weight.shape[1] * form.groups
        self.kept = _largest(weight, share=1 - options.sparsity) if options.sparsity else None
        if options.frozen:
            for name in ("latent", "shift", "sign"):
                if name in self._parameters:
                    self._parameters[name].requires_grad_(False)  # type: ignore[union-attr]  # these are never None

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, OH, OW)."""
        return self.form.conv2d(self.form.prepared(self.activation(x)), self.weight, self.bias)

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: ShiftConv2dOptions) -> str | None:
        """Takes any `nn.Conv2d` whose weight and forward are its own, and timm's `Conv2dSame`, if it is called."""
        return refuse_conv2d(site, dense)

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: ShiftConv2dOptions) -> "ShiftConv2d":
        """Carries over weight and bias of an `nn.Conv2d`, sharing their storage."""
        assert isinstance(dense, nn.Conv2d)
        layer = cls(dense.weight, dense.bias, ConvForm.of(dense), options)
        for parameter in layer.parameters():
            parameter.requires_grad_(parameter.requires_grad and dense.weight.requires_grad)
        return layer.train(dense.training)

    def op_count(self, *input_shapes: tuple[int, ...]) -> OpCount:
        """As `ShiftLayer.count`; pruned weights cost nothing."""
        outputs = self.form.outputs(input_shapes[0]) * self.out_channels
        depth = self.in_channels // self.form.groups * math.prod(self.form.kernel)
        used = _rounded_share(depth * self.out_channels, share=1 - self.options.sparsity)
        products = outputs // self.out_channels * used
        return self.count(inputs=math.prod(input_shapes[0]), outputs=outputs, products=products)

    @classmethod
    def examples(cls) -> list[Example]:
        """Strides, groups, paddings of every spelling, ps, frozen and pruned; refused: ties, no call, own forwards."""

        class Doubled(nn.Conv2d):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        class Renamed(nn.Conv2d):
            def forward(self, input: Tensor) -> Tensor:
                return F.conv2d(input, self.weight, self.bias, self.stride, self.padding)

        def example(name: str, *sizes: Any, refusal: str | None = None, **fields: Any) -> Example:
            place = {key: fields.pop(key) for key in ("conv", "cls", "type") if key in fields}
            return conv_example(name, *sizes, options=ShiftConv2dOptions(**fields), refusal=refusal, **place)

        lost = "user.Doubled is not torch.nn.Conv2d; its own forward would be lost"
        return [
            example("q"),
            example("ps-strided-no-bias", 4, 6, (3, 2), (2, 1), (1, 0), conv={"bias": False}, parameterisation="ps"),
            example("q-depthwise-dilated", 4, 4, 3, conv={"dilation": 2, "groups": 4, "padding": "same"}),
            example("q-reflected", conv={"padding_mode": "reflect"}),
            example("q-plain-subclass", 4, 6, 3, cls=Renamed, type="user.Renamed"),
            example("q-frozen-pruned", 4, 6, 3, frozen=True, sparsity=0.5),
            example("ps-pruned", parameterisation="ps", sparsity=0.25),
            example("q-int8-activations", activation_bits=8),
            example("q-grouped-two-terms", 4, 6, 3, conv={"groups": 2}, terms=2, init="least-squares"),
            example("subclass", cls=Doubled, type="user.Doubled", refusal=lost),
            *refused_examples(ShiftConv2dOptions()),
        ]

    def extra_repr(self) -> str:
        """Shape and bits, for `repr`."""
        shape = f"{self.in_channels}, {self.out_channels}, kernel={self.form.kernel}, stride={self.form.stride}"
        return f"{shape}, {self.width_repr()}"


def _rounded_share(weights: int, *, share: float) -> int:
    """How many of a layer's weights the share is, at least one."""
    return max(1, round(weights * share))


def _largest(weight: Tensor, *, share: float) -> Tensor:
    """Which weights are among the largest `share` of their layer: bool, same shape; ties are kept."""
    count = _rounded_share(weight.numel(), share=share)
    magnitude = weight.detach().float().abs()
    return magnitude >= magnitude.flatten().kthvalue(weight.numel() - count + 1).values
