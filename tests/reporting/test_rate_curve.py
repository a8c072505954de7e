from pathlib import Path

import pytest

from reparam.reporting.rate_curve import draw_rate_test, rate_figure
from reparam.train.rate_test import RateTest, find_rate

pytest.importorskip("matplotlib")


@pytest.fixture
def tried() -> RateTest:
    losses = iter([2.0] * 40 + [2.0 - 0.1 * i for i in range(1, 11)] + [1.0 * 1.5**i for i in range(50)])
    return find_rate(lambda lr: next(losses))


def test_steps_the_smoothed_curve_and_both_suggestions_are_drawn(tried: RateTest) -> None:
    (axes,) = rate_figure(tried).axes
    steps, smoothed, steepest, tenth = axes.get_lines()
    assert list(zip(*steps.get_data(), strict=True)) == list(zip(tried.rates, tried.losses, strict=True))
    curve = list(zip(tried.smoothed_rates, tried.smoothed_losses, strict=True))
    assert list(zip(*smoothed.get_data(), strict=True)) == curve
    assert set(steepest.get_xdata()) == {tried.steepest}
    assert set(tenth.get_xdata()) == {tried.tenth_of_best}
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "loss")


def test_a_loss_that_explodes_does_not_flatten_the_curve(tried: RateTest) -> None:
    (axes,) = rate_figure(tried).axes
    low, high = axes.get_ylim()
    assert low < min(tried.smoothed_losses) < max(tried.losses[:50]) < high < 4


def test_without_a_suggestion_none_is_drawn(tmp_path: Path) -> None:
    losses = iter([1.0, float("nan")])
    test = find_rate(lambda lr: next(losses))
    assert len(rate_figure(test).axes[0].get_lines()) == 2
    png, svg = draw_rate_test(test, tmp_path / "find-lr")
    assert (png.name, svg.name) == ("find-lr.png", "find-lr.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text(encoding="utf-8")


def test_a_test_that_ended_at_once_is_drawn(tmp_path: Path) -> None:
    draw_rate_test(find_rate(lambda lr: float("inf")), tmp_path / "find-lr")
