"""Nearest sums and fitted offsets against brute force over everything a shift layer can hold."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_fit import least_squares_offset, nearest_sum
from reparam.ops.shift_weight import ShiftOptions, channel_offset, shift_weight


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights are the same whatever ran before."""
    torch.manual_seed(0)


def every_value(options: ShiftOptions, exponent: int) -> Tensor:
    powers = [2.0 ** (exponent + p) for p in range(options.lowest_exponent, 1)]
    signed = [*([0.0] if options.zero_code else []), *powers, *(-p for p in powers)]
    return torch.tensor(sorted({sum(chosen) for chosen in itertools.product(signed, repeat=options.terms)}))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(-3, 3), st.integers(0, 2**16))
def test_no_value_of_the_grid_is_nearer(bits: int, terms: int, exponent: int, seed: int) -> None:
    options = ShiftOptions(bits=bits, terms=terms, domain="linear")
    weight = 2 * torch.randn(1, 200, generator=torch.Generator().manual_seed(seed))
    offset = torch.tensor([[exponent]], dtype=torch.int8)
    found = nearest_sum(weight, offset, options)
    grid = every_value(options, exponent)
    least = (weight.T - grid).abs().min(dim=1).values
    assert torch.isin(found, grid).all()
    torch.testing.assert_close((weight - found).abs()[0], least, rtol=0, atol=0)
    assert torch.equal(shift_weight(found, offset, options), found)


def test_without_a_code_for_zero_small_weights_take_the_smallest_power() -> None:
    options, offset = ShiftOptions(bits=3, zero_code=False), torch.tensor([[0]])
    weight = torch.tensor([[0.01, -0.01, 0.0, 1.6, 5.0]])
    assert nearest_sum(weight, offset, options).tolist() == [[0.125, -0.125, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("domain", ["log", "linear"])
def test_no_offset_has_a_smaller_squared_error(domain: str, terms: int) -> None:
    options = ShiftOptions.model_validate({"bits": 3, "domain": domain, "terms": terms})
    weight = torch.randn(20, 30) * torch.logspace(-2, 2, 20).unsqueeze(1)

    def errors(offset: Tensor) -> Tensor:
        return (shift_weight(weight, offset, options) - weight).square().sum(1)

    found = errors(least_squares_offset(weight, options))
    for exponent in range(-20, 20):
        assert (found <= errors(torch.full((20, 1), exponent))).all()
    rounded = errors(channel_offset(weight, domain=options.domain))
    assert (found <= rounded).all()
    assert (found < rounded).any()


def test_a_layer_starts_from_the_fitted_offset_only_when_asked() -> None:
    weight = torch.randn(8, 64)
    fitted = ShiftLinear(weight, None, ShiftOptions(bits=3, init="least-squares"))
    assert torch.equal(fitted.offset, least_squares_offset(weight, fitted.options))
    assert torch.equal(ShiftLinear(weight, None, ShiftOptions(bits=3)).offset, channel_offset(weight))
    assert not torch.equal(fitted.offset, channel_offset(weight))
    assert torch.equal(fitted.latent, weight)


def test_a_channel_of_zeros_stays_zero() -> None:
    layer = ShiftLinear(torch.zeros(2, 5), None, ShiftOptions(init="least-squares", terms=2))
    assert not layer.weight.any()
    assert not layer.offset.any()


@pytest.mark.parametrize("parameterisation", ["q", "ps"])
def test_weights_that_are_set_on_the_grid_are_the_layers(parameterisation: str) -> None:
    options = ShiftOptions.model_validate({"bits": 4, "parameterisation": parameterisation})
    layer = ShiftLinear(torch.randn(3, 7), None, options)
    offset = torch.tensor([[-1], [0], [2]], dtype=torch.int8)
    values = nearest_sum(torch.randn(3, 7), offset, options)
    layer.set_weight_(values, offset)
    assert torch.equal(layer.weight, values)
