"""Shift layers of every form, the dense layers that they came from, and images for them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reparam.calibrate.moments import Moments, MomentSums, ShiftProduct
from reparam.ops.base import OPERATORS, parse_options
from reparam.ops.conv_examples import conv_example
from reparam.ops.shift import ShiftLinear

FORMS: dict[str, Callable[[], nn.Linear | nn.Conv2d]] = {
    "linear": lambda: nn.Linear(12, 5),
    "linear without bias": lambda: nn.Linear(12, 5, bias=False),
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2),
    "groups": lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 0), groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
}


def made(form: str, **options: Any) -> tuple[ShiftProduct, nn.Linear | nn.Conv2d]:
    torch.manual_seed(0)
    dense = FORMS[form]().eval()
    name = "shift_linear" if isinstance(dense, nn.Linear) else "shift_conv2d"
    parsed = parse_options(OPERATORS.get(name), options, where="here")
    site = ShiftLinear.examples()[0].site if name == "shift_linear" else conv_example("", options=parsed).site
    layer = OPERATORS.get(name).from_dense(dense, site, parsed).eval()
    return layer, copy.deepcopy(dense)  # type: ignore[return-value]  # these two names are shift layers


def inputs(form: str, batch: int = 16, seed: int = 1) -> Tensor:
    """Correlated, off centre: as activations are."""
    generator = torch.Generator().manual_seed(seed)
    if form.startswith("linear"):
        x = torch.randn(batch, 7, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
        return x.relu()
    x = torch.randn(batch, 4, 9, 8, generator=generator)
    return (x + x.roll(1, dims=2) + x.mean(1, keepdim=True)).relu()


def moments_of(layer: ShiftProduct, dense: nn.Module, x: Tensor, dense_x: Tensor | None = None) -> Moments:
    sums = MomentSums(layer)
    with torch.no_grad():
        for part, other in zip(x.split(5), (x if dense_x is None else dense_x).split(5), strict=True):
            sums.add(part, dense(other))
    return sums.moments()
