"""Rounding to powers of two, against exact logarithms and distances."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.ops.power_of_two import (
    exponent_of,
    power_of_two,
    round_to_power_of_two,
    round_to_power_of_two_stochastically,
)

normal_floats = st.floats(min_value=2.0**-100, max_value=2.0**100, width=32)


@pytest.mark.parametrize("exponent", range(-126, 128))
def test_powers_of_two_are_exact(exponent: int) -> None:
    assert power_of_two(torch.tensor(exponent)).item() == math.ldexp(1.0, exponent)


def test_exponents_saturate_at_the_ends_of_float32() -> None:
    assert power_of_two(torch.tensor([-500, 500])).tolist() == [2.0**-126, 2.0**127]


@given(normal_floats)
def test_the_exponent_is_the_floor_of_the_logarithm(value: float) -> None:
    assert exponent_of(torch.tensor([value])).item() == math.frexp(value)[1] - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(value=normal_floats)
def test_the_log_domain_picks_the_exponent_nearest_in_log2(value: float, dtype: torch.dtype) -> None:
    got = round_to_power_of_two(torch.tensor([value], dtype=dtype)).item()
    low = Fraction(2) ** (math.frexp(value)[1] - 1)
    # value >= sqrt(2) * low, squared to stay exact; the float nearest to the tie is granted to the upper side.
    is_upper = Fraction(value) ** 2 >= 2 * low**2 or value / float(low) == torch.tensor(2.0, dtype=dtype).sqrt().item()
    assert Fraction(got) == (2 * low if is_upper else low)


@given(normal_floats)
def test_the_linear_domain_picks_the_nearest_value_and_ties_go_up(value: float) -> None:
    got = round_to_power_of_two(torch.tensor([value]), domain="linear").item()
    low = math.ldexp(1.0, math.frexp(value)[1] - 1)
    assert got == (2 * low if value - low >= 2 * low - value else low)


@given(normal_floats, st.sampled_from(["log", "linear"]))
def test_rounding_twice_is_rounding_once_and_the_sign_is_kept(value: float, domain: str) -> None:
    once = round_to_power_of_two(torch.tensor([value, -value]), domain=domain)  # type: ignore[arg-type]
    assert torch.equal(round_to_power_of_two(once, domain=domain), once)  # type: ignore[arg-type]
    assert once[0] == -once[1]
    assert once[0] > 0


@pytest.mark.parametrize(
    ("value", "expected"), [(0.7, 0.5), (0.75, 1.0), (2**-0.5, 1.0), (-0.3, -0.25), (0.0, 0.0), (1e-42, 0.0)]
)
def test_published_check_values(value: float, expected: float) -> None:
    assert round_to_power_of_two(torch.tensor([value])).item() == expected


def test_half_precision_keeps_its_dtype() -> None:
    assert round_to_power_of_two(torch.tensor([0.7], dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_rounding_error_of_a_normal_weight_is_the_published_one() -> None:
    weight = 0.02 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    error = (round_to_power_of_two(weight) - weight).norm() / weight.norm()
    assert error.item() == pytest.approx(0.206, abs=0.003)


def test_stochastic_rounding_is_unbiased_in_the_exponent_and_safe_at_zero() -> None:
    torch.manual_seed(0)
    value = torch.full((20_000,), 1.7)
    drawn = round_to_power_of_two_stochastically(value)
    assert set(drawn.tolist()) == {1.0, 2.0}
    assert drawn.log2().mean().item() == pytest.approx(math.log2(1.7), abs=0.01)
    assert round_to_power_of_two_stochastically(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
