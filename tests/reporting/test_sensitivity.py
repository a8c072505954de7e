"""The bars of a sensitivity analysis: one for each site, in the order of the ranking, as long as its figures."""

import pytest

from reparam.reporting.sensitivity import sensitivity_figure
from tests.tradeoff.stand_ins import found_of, site

pytest.importorskip("matplotlib")


def test_each_site_has_a_bar_for_its_divergence_and_one_for_what_it_lost() -> None:
    found = found_of(site("a", 0.7, 9.0), site("b", 0.02, -0.25), site("c", 1e-4, 0.5))
    divergence, lost = sensitivity_figure(found).axes
    assert [bar.get_width() for bar in divergence.patches] == [0.7, 0.02, 1e-4]
    assert [bar.get_width() for bar in lost.patches] == [9.0, -0.25, 0.5]
    labels = [label.get_text() for label in divergence.get_yticklabels()]
    assert [label.split()[0] for label in labels] == ["a", "b", "c"]
    heights = [bar.get_y() for bar in divergence.patches]
    low, high = divergence.get_ylim()
    assert heights == sorted(heights, reverse=bool(low < high))  # the most harmful on top


def test_of_many_sites_the_most_harmful_are_drawn() -> None:
    found = found_of(*(site(f"s{i}", 1 / (i + 1), 0.0) for i in range(100)))
    divergence, _ = sensitivity_figure(found).axes
    assert len(divergence.patches) == 60
    assert min(bar.get_width() for bar in divergence.patches) == 1 / 60
