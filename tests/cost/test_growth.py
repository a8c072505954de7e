import pytest

from reparam.cost.growth import fitted_exponent


@pytest.mark.parametrize("exponent", [1.0, 2.0, 1.37])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    assert fitted_exponent({n: 0.3 * n**exponent for n in (196, 1024, 4096)}) == pytest.approx(exponent)


def test_times_off_the_law_are_fitted_by_least_squares() -> None:
    """log2 t over log2 n: (0, 0), (1, 0), (2, 2) has the slope 1."""
    assert fitted_exponent({1: 1, 2: 1, 4: 4}) == pytest.approx(1.0)


@pytest.mark.parametrize("times", [{}, {196: 3.0}])
def test_one_size_tells_nothing(times: dict[float, float]) -> None:
    assert fitted_exponent(times) is None
