"""A layer is plain when its forward is one operation on its own weight and bias, in eval and in training."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from reparam.ops.plain_layer import is_plain


class Rewritten(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, weight=self.weight, bias=self.bias)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class ReturnsItsInput(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        super().forward(input)
        return input


class OtherWeight(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.table = nn.Parameter(torch.zeros(4, 4))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.table, self.bias)


class WithoutItsBias(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


class NoisyInTraining(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, 0.5) if self.training else input)


class TwoInputs(nn.Linear):
    def forward(self, input: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input) * scale


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(4, 4), nn.Linear(4, 4, bias=False), Rewritten(4, 4), NonDynamicallyQuantizableLinear(4, 4)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_forward_that_is_the_operation_is_plain(layer: nn.Module) -> None:
    assert is_plain(layer, "linear", (2, 4))
    assert not is_plain(layer, "conv2d", (2, 4))


@pytest.mark.parametrize(
    "layer",
    [
        Scaled(4, 4), ReturnsItsInput(4, 4), OtherWeight(), WithoutItsBias(4, 4), NoisyInTraining(4, 4),
        TwoInputs(4, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_a_forward_that_does_more_less_or_other_is_not(layer: nn.Module) -> None:
    assert not is_plain(layer, "linear", (2, 4))


def test_the_layer_keeps_its_mode() -> None:
    layer = Rewritten(4, 4).eval()
    is_plain(layer, "linear", (2, 4))
    assert not layer.training
