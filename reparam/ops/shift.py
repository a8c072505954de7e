"""shift_linear: a linear layer whose weights are signed powers of two, so each product is a bit shift.

    y = x @ W' + b,   W[o, i] in {0, +-2**p}     (`shift_weight.py` says which p)

Source: DeepShift, arXiv:1905.13298 (Q and PS).  Shapes: x (..., I), W (O, I), y (..., O).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.counts import OpCount
from reparam.ops.base import Example, operator
from reparam.ops.plain_layer import is_plain
from reparam.ops.shift_layer import ShiftLayer
from reparam.ops.shift_weight import ShiftOptions
from reparam.ops.site import Site


def _is_plain_linear(dense: nn.Module) -> bool:
    return isinstance(dense, nn.Linear) and is_plain(dense, "linear", (1, dense.in_features))


@operator("shift_linear", kind="linear", source="arXiv:1905.13298")
class ShiftLinear(ShiftLayer):
    """y = x @ W' + b, W rounded to powers of two.  Before: O*I mul + O*I add.  After: O*I shift + O*I add a term."""

    def __init__(self, weight: Tensor, bias: Tensor | None, options: ShiftOptions) -> None:
        super().__init__(weight, bias, options)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., I) to (..., O)."""
        return F.linear(self.activation(x), self.weight, self.bias)

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: ShiftOptions) -> str | None:
        """Takes any `nn.Linear` whose weight is its own, and subclasses whose forward does the same."""
        if site.shared_with:
            return f'its weight is shared with "{site.shared_with[0]}", which would stay dense'
        if type(dense) is not nn.Linear and not _is_plain_linear(dense):
            return f"{site.type} is not torch.nn.Linear; its own forward would be lost"
        return None

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: ShiftOptions) -> "ShiftLinear":
        """Carries over weight and bias of an `nn.Linear`, sharing their storage."""
        assert isinstance(dense, nn.Linear)
        layer = cls(dense.weight, dense.bias, options)
        for parameter in layer.parameters():
            parameter.requires_grad_(dense.weight.requires_grad)
        return layer.train(dense.training)

    def op_count(self, *input_shapes: tuple[int, ...]) -> OpCount:
        """As `ShiftLayer.count`."""
        rows = math.prod(input_shapes[0][:-1])
        outputs = rows * self.out_features
        return self.count(inputs=rows * self.in_features, outputs=outputs, products=outputs * self.in_features)

    @classmethod
    def examples(cls) -> list[Example]:
        """Every parameterisation and a plain subclass; refused: a shared weight, a subclass that does more."""
        site = Site(
            path="fc",
            kind="linear",
            type="torch.nn.modules.linear.Linear",
            input_shape=(2, 3, 8),
            output_shape=(2, 3, 4),
        )

        def example(name: str, refusal: str | None = None, **fields: Any) -> Example:
            dense = fields.pop("dense", lambda: nn.Linear(8, 4))
            chosen = site.model_copy(update={"shared_with": fields.pop("shared_with", ())})
            return Example(
                name=name,
                site=chosen.model_copy(update={"type": fields.pop("type", site.type)}),
                dense=dense,
                inputs=lambda: (torch.randn(2, 3, 8),),
                options=ShiftOptions(**fields),
                refusal=refusal,
            )

        class Doubled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        class Renamed(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return F.linear(input, self.weight, self.bias)

        return [
            example("q"),
            example("q-plain-subclass", dense=lambda: Renamed(8, 4), type="user.Renamed"),
            example("q-no-bias", dense=lambda: nn.Linear(8, 4, bias=False)),
            example("q-2-bits", bits=2),
            example("q-8-bits-linear-domain", bits=8, domain="linear"),
            example("q-as-published", per_channel_offset=False, zero_code=False, activation_bits=16),
            example("q-stochastic", rounding="stochastic"),
            example("q-two-terms", terms=2),
            example("q-three-terms-least-squares", terms=3, bits=4, domain="linear", init="least-squares"),
            example("q-int8-activations", activation_bits=8),
            example("ps", parameterisation="ps"),
            example("ps-floor-activations", parameterisation="ps", activation_bits=16, activation_rounding="floor"),
            example(
                "shared", shared_with=("head",), refusal='its weight is shared with "head", which would stay dense'
            ),
            example(
                "subclass",
                dense=lambda: Doubled(8, 4),
                type="user.Doubled",
                refusal="user.Doubled is not torch.nn.Linear; its own forward would be lost",
            ),
        ]

    def extra_repr(self) -> str:
        """Shape and bits, for `repr`."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, {self.width_repr()}"
