"""Reconstruction: on the grid, never worse than plain rounding, near the best that brute force finds."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.calibrate.moments import by_group
from reparam.calibrate.reconstruct import put_, reconstruct
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from tests.calibrate.layers import FORMS, inputs, made, moments_of

OPTIONS: dict[str, dict[str, Any]] = {
    "5 bits": {},
    "3 bits, log": {"bits": 3},
    "two terms": {"terms": 2, "bits": 4},
    "three terms": {"terms": 3, "bits": 3},
    "ps": {"parameterisation": "ps", "bits": 4},
    "as published": {"zero_code": False, "per_channel_offset": False},
    "int8": {"activation_bits": 8},
}
forms = pytest.mark.parametrize("form", FORMS)
each = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def output_error(layer: nn.Module, dense: nn.Module, x: Tensor) -> Tensor:
    """Squared error of each output channel."""
    gap = (layer(x) - dense(x)).detach().double()
    return gap.square().movedim(-1 if gap.ndim == 3 else 1, 0).flatten(1).sum(1)


@forms
@each
def test_weights_are_on_the_grid_and_no_channel_is_worse_than_plainly_rounded(
    form: str, options: dict[str, Any]
) -> None:
    layer, dense = made(form, **options)
    x = inputs(form)
    plain = output_error(layer, dense, x)
    found = reconstruct(layer, dense.weight, moments_of(layer, dense, x))
    put_(layer, found)
    assert torch.equal(layer.weight.double(), found.weight.view_as(layer.weight).double())
    error = output_error(layer, dense, x)
    assert (error <= plain * (1 + 1e-4) + 1e-4).all()
    assert error.sum() < plain.sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**16))
def test_its_own_error_is_never_above_that_of_rounding(bits: int, terms: int, rows: int, seed: int) -> None:
    """With fewer images than inputs too, where the Hessian is singular."""
    generator = torch.Generator().manual_seed(seed)
    dense = nn.Linear(6, 4)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(4, 6, generator=generator))
    layer = ShiftLinear(dense.weight, dense.bias, ShiftOptions(bits=bits, terms=terms))
    x = torch.randn(rows, 1, 6, generator=generator)
    found = reconstruct(layer, dense.weight, moments_of(layer, dense, x))
    assert found.error <= found.rounded_error
    assert torch.isfinite(found.weight).all()


def test_brute_force_over_the_whole_grid_is_hardly_better() -> None:
    torch.manual_seed(0)
    options = ShiftOptions(bits=3, per_channel_offset=False)
    values = [0.0, *(s * 2.0**p for s in (1, -1) for p in range(options.lowest_exponent, 1))]
    every = torch.tensor(list(itertools.product(values, repeat=4)), dtype=torch.float64)
    share = []
    for _ in range(20):
        dense = nn.Linear(4, 1, bias=False)
        x = torch.randn(30, 1, 4) @ torch.randn(4, 4)
        layer = ShiftLinear(dense.weight, None, options)
        moments = moments_of(layer, dense, x)
        found = reconstruct(layer, dense.weight, moments)
        best = float(moments.error(every[None]).min())
        own, rounded = (
            float(moments.error(by_group(layer, w).double()).sum()) for w in (found.weight, layer.weight.detach())
        )
        assert best <= own * (1 + 1e-9)
        share.append((own - best) / (rounded - best) if rounded > best * 1.01 else 0.0)
    assert sum(share) / len(share) < 0.35


def test_the_bias_takes_the_mean_error() -> None:
    layer, dense = made("linear", bits=3)
    x = inputs("linear") + 5
    put_(layer, reconstruct(layer, dense.weight, moments_of(layer, dense, x)))
    gap = (layer(x) - dense(x)).mean((0, 1))
    torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-4)


def test_it_makes_up_for_what_earlier_layers_changed() -> None:
    """The dense layer saw other inputs: the target is its output, not its weights."""
    layer, dense = made("linear", bits=6)
    x = inputs("linear", 64)
    changed = x @ (torch.eye(12) + 0.1 * torch.randn(12, 12))
    moments = moments_of(layer, dense, changed, x)
    found = reconstruct(layer, dense.weight, moments)
    put_(layer, found)
    ordinary = F.linear(changed, dense.weight, dense.bias) - dense(x)
    assert (layer(changed) - dense(x)).square().sum() < 0.5 * ordinary.square().sum()


def test_pruned_weights_stay_zero() -> None:
    layer, dense = made("conv", sparsity=0.5)
    assert layer.kept is not None
    put_(layer, reconstruct(layer, dense.weight, moments_of(layer, dense, inputs("conv"))))
    assert not layer.weight[~layer.kept].any()


def test_dead_inputs_are_counted_and_plainly_rounded() -> None:
    layer, dense = made("linear")
    rounded = layer.weight.detach().clone()
    x = inputs("linear")
    x[..., 3] = 0.0
    found = reconstruct(layer, dense.weight, moments_of(layer, dense, x))
    assert found.dead == 1
    assert torch.isin(found.weight[:, 3].float(), rounded[:, 3]).all()


def test_a_layer_that_only_saw_zeros_keeps_its_rounded_weights() -> None:
    layer, dense = made("linear without bias")
    rounded = layer.weight.detach().clone()
    found = reconstruct(layer, dense.weight, moments_of(layer, dense, torch.zeros(5, 7, 12)))
    assert (found.dead, found.error) == (12, 0.0)
    assert torch.equal(found.weight.float(), rounded)
