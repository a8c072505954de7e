"""The front of a search: every point is on the picture, the dense model at one and zero, nothing below zero."""

from pathlib import Path

import pytest

from reparam.api.search import search
from reparam.reporting.pareto import front_figure
from reparam.tradeoff.outcome import SearchResult
from tests.tradeoff.stand_ins import found_of, site

pytest.importorskip("matplotlib")


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchResult:
    monkeypatch.setattr("reparam.api.search.can_draw", lambda: False)
    analysis = tmp_path / "sensitivity.json"
    analysis.write_text(found_of(site("a", 1e-4, 0.5), site("b", 0.02, -0.25), site("c", 0.7, 9.0)).model_dump_json())
    return search(analysis, budget="multiplications=0.7x")


def test_every_point_of_the_front_is_within_the_picture(result: SearchResult) -> None:
    for axes, of in zip(front_figure(result).axes, ("kl", "top1_drop"), strict=True):
        (front, taken, _) = axes.lines
        assert list(front.get_xdata()) == [point.shares["multiplications"] for point in result.front]
        assert list(front.get_ydata()) == [getattr(point, of) for point in result.front]
        assert list(taken.get_ydata()) == [getattr(result.predicted, of)]
        low, high = axes.get_ylim()
        assert all(low <= value < high for value in front.get_ydata())


def test_the_axis_of_divergences_has_no_negative_half(result: SearchResult) -> None:
    divergence = front_figure(result).axes[0]
    assert divergence.get_yscale() == "symlog"
    assert divergence.get_ylim()[0] == 0
    assert 0 in divergence.lines[0].get_ydata()  # the dense model
