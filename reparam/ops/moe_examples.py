"""Small MLPs of every kind that `moe_mlp` takes, and ones that it refuses: what the conformance suite runs on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.ops.base import Example
from reparam.ops.moe_options import MoeMlpOptions
from reparam.ops.shift_weight import ShiftOptions
from reparam.ops.site import MlpForm, Site

WIDTH, HIDDEN = 8, 16
_TOKENS, _MAP = (2, 4, WIDTH), (2, WIDTH, 2, 2)
_CHAIN = MlpForm(linears=("0", "2"), chain=("0", "1", "2"))
_MAPS = MlpForm(linears=("0", "2"), layout="channels_first")


class _Gated(nn.Module):
    """x -> down(silu(gate(x)) * up(x)), as in SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class _Packed(nn.Module):
    """x -> fc2(a * sigmoid(b)), a and b the halves of fc1(x), as in GluMlp; counts axes from the front."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=2)
        out: Tensor = self.fc2(a * b.sigmoid())
        return out


class _Depthwise(nn.Module):
    """x -> fc2(gelu(dwconv(fc1(x)))) over a plane of two rows, as in PVTv2."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.dwconv = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        plane = self.fc1(x).transpose(1, 2).unflatten(2, (2, -1))
        out: Tensor = self.fc2(F.gelu(self.dwconv(plane)).flatten(2).transpose(1, 2))
        return out


class _Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class _DoubledConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _chain(*, first: type[nn.Linear] = nn.Linear, hidden: int = HIDDEN) -> nn.Sequential:
    return nn.Sequential(first(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))


def _maps(*between: nn.Module, first: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(first(WIDTH, HIDDEN, 1), *between, nn.Conv2d(HIDDEN, WIDTH, 1, bias=False))


def moe_examples() -> list[Example]:
    """Every kind with the default options, and every option on a straight chain."""
    depthwise = MlpForm(linears=("fc1", "fc2"), mixes_tokens=True)
    normalised = MlpForm(linears=("0", "3"), layout="channels_first", mixes_tokens=True)
    fixed_point = ShiftOptions(activation_bits=8)
    return [
        _example("default"),
        _example("ps", shift=ShiftOptions(parameterisation="ps")),
        _example("probability-gate", gate="probability", router_init="normal"),
        _example("released-gate", gate="one", router_init="normal", router_noise=0.0),
        _example("grouped", dispatch="grouped", router_init="normal"),
        _example("fixed-point", shift=fixed_point),
        _example("masked", dispatch="masked", router_init="normal"),
        _example("gated", _Gated, MlpForm(linears=("gate", "up", "down")), router_init="normal"),
        _example("packed", _Packed, MlpForm(linears=("fc1", "fc2")), router_init="normal"),
        _example(
            "norm",
            lambda: nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, WIDTH)),
            MlpForm(linears=("0", "3")),
        ),
        _example("maps", lambda: _maps(nn.GELU()), _MAPS, shape=_MAP, router_init="normal"),
        _example("maps-ps", lambda: _maps(nn.GELU()), _MAPS, shape=_MAP, shift=ShiftOptions(parameterisation="ps")),
        _example("depthwise", _Depthwise, depthwise, router_init="normal"),
        _example("depthwise-grouped", _Depthwise, depthwise, router_init="normal", dispatch="grouped"),
        _example("batch-norm", lambda: _maps(nn.BatchNorm2d(HIDDEN), nn.GELU()), normalised, shape=_MAP),
        *_refused(),
    ]


def _refused() -> list[Example]:
    return [
        _example(
            "grouped-odd-width",
            lambda: _chain(hidden=12),
            dispatch="grouped",
            refusal='dispatch = "grouped" needs layer widths that are multiples of 8; use "auto"',
        ),
        _example(
            "grouped-maps",
            lambda: _maps(nn.GELU()),
            _MAPS,
            dispatch="grouped",
            refusal='dispatch = "grouped" needs a straight chain of linear layers; use "auto"',
        ),
        _example("shared", shared_with=("other",), refusal='it shares parameters with "other"'),
        _example(
            "linear-subclass",
            lambda: _chain(first=_Doubled),
            refusal='its layer "0" cannot shift: 0 is not torch.nn.Linear; its own forward would be lost',
        ),
        _example(
            "convolution-subclass",
            lambda: _maps(nn.GELU(), first=_DoubledConv),
            _MAPS,
            refusal='its layer "0" cannot shift: 0 is not torch.nn.Conv2d; its own forward would be lost',
        ),
    ]


def _example(
    name: str,
    dense: Callable[[], nn.Module] = _chain,
    form: MlpForm = _CHAIN,
    *,
    shape: tuple[int, ...] = _TOKENS,
    shared_with: tuple[str, ...] = (),
    refusal: str | None = None,
    **options: Any,
) -> Example:
    site = Site(
        path="mlp", kind="mlp", type="torch.nn.modules.container.Sequential", input_shape=shape, output_shape=shape,
        shared_with=shared_with, mlp=form,
    )  # fmt: skip
    return Example(
        name=name,
        site=site,
        dense=dense,
        inputs=lambda: (torch.randn(shape),),
        options=MoeMlpOptions(**options),
        refusal=refusal,
    )
