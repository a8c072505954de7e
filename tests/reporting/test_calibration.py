"""The picture of a calibration: two dots for each layer, at its errors, in the order of the run."""

import pytest

from reparam.calibrate.records import Calibration, LayerFit
from reparam.reporting.calibration import calibration_figure

pytest.importorskip("matplotlib")


def found_of(*errors: tuple[float, float]) -> Calibration:
    layers = (LayerFit(path=f"l{i}$", error=after, rounded_error=before) for i, (before, after) in enumerate(errors))
    return Calibration(images=128, layers=tuple(layers))


def test_each_layer_has_a_dot_before_and_one_after_in_percent_from_top_to_bottom() -> None:
    (axes,) = calibration_figure(found_of((0.2, 0.1), (0.5, 0.45))).axes
    before, after = (dots.get_offsets().tolist() for dots in axes.collections[1:])
    assert before == [[20.0, 0.0], [50.0, 1.0]]
    assert after == [[10.0, 0.0], [45.0, 1.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["l0$", "l1$"]
    low, high = axes.get_ylim()
    assert low > high  # the first on top
    assert axes.get_xlim()[0] == 0


def test_deep_networks_keep_all_dots_and_name_some_layers() -> None:
    (axes,) = calibration_figure(found_of(*[(0.2, 0.1)] * 200)).axes
    assert len(axes.collections[1].get_offsets()) == 200
    assert len(axes.get_yticklabels()) == 67
