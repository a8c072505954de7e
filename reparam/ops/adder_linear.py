"""adder_linear: a linear layer whose products are absolute differences, so that it only adds.

    y[o] = -sum_i |W[o, i] - x[i]| + b[o]           (gradients: `adder_function.py`)

Source: AdderNet, arXiv:1912.13200.  Shapes: x (..., I), W (O, I), y (..., O).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.counts import OpCount
from reparam.ops.adder_function import adder_conv2d
from reparam.ops.adder_layer import NO_NORM, SMALLEST_STD, AdderLayer, AdderOptions, refuse_bare
from reparam.ops.base import Example, operator
from reparam.ops.conv_form import NOT_CALLED
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from reparam.ops.site import Site


@operator("adder_linear", kind="linear", source="arXiv:1912.13200")
class AdderLinear(AdderLayer):
    """y = norm(-sum |W - x| + b).  Before: O*I mul + O*I add.  After: 2*O*I add + O*I absolute values.

    `norm` is the identity where the model's own normalisation follows, else a batch norm over all rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, options: AdderOptions, *, norm: nn.Module) -> None:
        super().__init__(weight, bias, options, norm=norm)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O)."""
        out = self.differences(x)
        normalised: Tensor = self.norm(out.reshape(-1, self.out_features)).view(out.shape)
        return normalised

    def differences(self, x: Tensor) -> Tensor:
        """The output before the normalisation (..., O)."""
        if x.is_meta:
            return F.linear(x, self.weight, self.bias)
        # Rows are the pixels of one image of width 1 under a 1x1 kernel.
        rows = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)
        out = adder_conv2d(rows, self.used_weight()[..., None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)

    def fit_(self, dense: nn.Module, x: Tensor, target: Tensor, *, steps: int) -> float:
        """As `AdderLayer.fit_to`, with the statistics of each input feature."""
        assert isinstance(dense, nn.Linear)
        std, mean = torch.std_mean(x.float().flatten(0, -2), dim=0)
        std = std.clamp_min(SMALLEST_STD)
        return self.fit_to(dense.weight, x, target, mean=mean, std=std, steps=steps, channel=-1)

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: AdderOptions) -> str | None:
        """Takes what `shift_linear` takes where it is called as a module, and where a normalisation may follow."""
        if not site.is_called:
            return NOT_CALLED
        return ShiftLinear.refuse(site, dense, ShiftOptions()) or refuse_bare(site, options)

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: AdderOptions) -> "AdderLinear":
        """Starts from the weight of an `nn.Linear` as `init` says, and carries over its bias."""
        assert isinstance(dense, nn.Linear)
        like: dict[str, Any] = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        norm = nn.Identity() if site.normalised else nn.BatchNorm1d(dense.out_features, **like)
        layer = cls(dense.weight, dense.bias, options, norm=norm)
        return layer.requires_grad_(dense.weight.requires_grad).train(dense.training)

    def op_count(self, *input_shapes: tuple[int, ...]) -> OpCount:
        """As `AdderLayer.count`."""
        return self.count(outputs=math.prod(input_shapes[0][:-1]) * self.out_features, depth=self.in_features)

    @classmethod
    def examples(cls) -> list[Example]:
        """With a norm behind and without, tokens and vectors; refused: ties, no norm, no call."""

        def example(name: str, refusal: str | None = None, **fields: Any) -> Example:
            shape = fields.pop("shape", (4, 3, 8))
            site = Site(
                path="fc",
                kind="linear",
                type="torch.nn.modules.linear.Linear",
                input_shape=shape,
                output_shape=(*shape[:-1], 5),
                normalised=fields.pop("normalised", True),
                is_called=fields.pop("is_called", True),
                shared_with=fields.pop("shared_with", ()),
            )
            return Example(
                name=name,
                site=site,
                dense=lambda: nn.Linear(8, 5),
                inputs=lambda: (torch.randn(shape),),
                options=AdderOptions(**fields),
                refusal=refusal,
            )

        return [
            example("plain"),
            example("inserts-a-norm", normalised=False),
            example("vectors", shape=(4, 8), normalised=False, init="normal", lr="plain"),
            example("shared", shared_with=("b",), refusal='its weight is shared with "b", which would stay dense'),
            example("no-norm", normalised=False, norm="require", refusal=NO_NORM),
            example("not-called", is_called=False, refusal=NOT_CALLED),
        ]

    def extra_repr(self) -> str:
        """Shape, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
