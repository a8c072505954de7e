"""shift_adder_conv2d: the ShiftAddNet block, a shift convolution followed by an adder convolution.

    Z = conv2d(X, W'),  W' signed powers of two;    Y[o, p] = -sum_k |V[o, k] - Z[k, p]|

The shift part takes the place of the dense convolution, weights included; the adder has the same kernel at stride 1 and
maps its O channels to O, and nothing stands between them. Twice the layers, no multiplication.
Source: ShiftAddNet, arXiv:2010.12785.  Shapes: X (B, I, H, W), W' (O, I / groups, KH, KW), V (O, O / groups, KH, KW).
"""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.ops.adder_conv2d import AdderConv2d, AdderConv2dOptions
from reparam.ops.adder_layer import NO_NORM, refuse_bare
from reparam.ops.base import Example, Operator, OperatorOptions, operator
from reparam.ops.conv_examples import conv_example, refused_examples
from reparam.ops.conv_form import ConvAttributes, ConvForm, refuse_conv2d
from reparam.ops.shift_conv2d import ShiftConv2d, ShiftConv2dOptions
from reparam.ops.site import Site


class RandomAdderOptions(AdderConv2dOptions):
    """Options of an adder layer that has no pretrained weights."""

    init: Literal["normal"] = Field("normal", description="N(0, 1), as published.")


class ShiftAdderOptions(OperatorOptions):
    """Options of `shift_adder_conv2d`: those of its two layers."""

    shift: ShiftConv2dOptions = Field(ShiftConv2dOptions(), description="Options of the shift layer.")
    adder: RandomAdderOptions = Field(RandomAdderOptions(), description="Options of the adder layer.")


@operator("shift_adder_conv2d", kind="conv2d", source="arXiv:2010.12785")
class ShiftAdderConv2d(Operator, ConvAttributes):
    """Y = adder(shift(X)).  Before: n mul + n add.  After: n shift + n add, and O/I as many differences.

    State: `shift.*` and `adder.*`.
    """

    Options = ShiftAdderOptions

    def __init__(self, shift: ShiftConv2d, adder: AdderConv2d) -> None:
        super().__init__()
        self.shift, self.adder, self.form = shift, adder, shift.form
        self.in_channels, self.out_channels = shift.in_channels, adder.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, I, H, W) to (B, O, OH, OW)."""
        out: Tensor = self.adder(self.shift(x))
        return out

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: ShiftAdderOptions) -> str | None:
        """Takes what `adder_conv2d` takes."""
        return refuse_conv2d(site, dense) or refuse_bare(site, options.adder)

    @classmethod
    def remark(cls, site: Site, options: ShiftAdderOptions) -> str | None:
        """Says where a normalisation is inserted."""
        return AdderConv2d.remark(site, options.adder)

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: ShiftAdderOptions) -> "ShiftAdderConv2d":
        """The shift layer carries the weight and bias of an `nn.Conv2d` over; the adder starts at random."""
        assert isinstance(dense, nn.Conv2d)
        shift = ShiftConv2d.from_dense(dense, site, options.shift)
        width, like, full = dense.out_channels, dense.weight, ConvForm.of(dense).kernel
        # On a small map (VGG's 7x7 convolution gives one pixel) weights beyond these would meet padding alone.
        kernel = (min(full[0], 2 * site.output_shape[2] - 1), min(full[1], 2 * site.output_shape[3] - 1))
        form = ConvForm(
            kernel=kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=dense.groups, is_same=True
        )
        # Its starting weights are random: only the shape of what it is given counts.
        start = like.new_empty(width, width // dense.groups, *kernel)
        norm = nn.Identity() if site.normalised else nn.BatchNorm2d(width, device=like.device, dtype=like.dtype)
        adder = AdderConv2d(start, None, form, options.adder, norm=norm)
        return cls(shift, adder.requires_grad_(dense.weight.requires_grad)).train(dense.training)

    def op_count(self, *input_shapes: tuple[int, ...]) -> OpCount:
        """The counts of both layers, and the map between them."""
        form, width = self.shift.form, self.adder.out_channels
        differences = self.adder.count(
            outputs=form.outputs(input_shapes[0]) * width, depth=self.adder.weight[0].numel()
        )
        between = form.outputs(input_shapes[0]) * self.shift.out_channels
        return self.shift.op_count(*input_shapes) + differences + OpCount.moves(read=between, write=between)

    def declares(self, path: str) -> bool:
        """Everything but an inserted norm, which runs and counts like any other."""
        return path != "adder.norm"

    @classmethod
    def examples(cls) -> list[Example]:
        """Strides, groups, even kernels, frozen shifts; refused: ties, no norm."""

        def example(name: str, *sizes: Any, refusal: str | None = None, **fields: Any) -> Example:
            place = {key: fields.pop(key) for key in ("conv", "normalised") if key in fields}
            options = ShiftAdderOptions.model_validate(fields)
            return conv_example(name, *sizes, options=options, refusal=refusal, **place)

        return [
            example("plain"),
            example("strided-no-bias", 4, 6, 3, 2, 1, conv={"bias": False}, shift={"parameterisation": "ps"}),
            example("depthwise-even", 4, 4, 2, conv={"groups": 4}, normalised=False),
            example("to-one-pixel", 4, 6, 8),
            example("fixed", shift={"frozen": True, "sparsity": 0.5}),
            example("no-norm", normalised=False, adder={"norm": "require"}, refusal=NO_NORM),
            *refused_examples(ShiftAdderOptions()),
        ]
