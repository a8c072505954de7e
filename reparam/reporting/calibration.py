"""The output error of each calibrated layer, before and after, in the order of the run."""

from pathlib import Path
from typing import TYPE_CHECKING

from reparam.calibrate.records import Calibration
from reparam.reporting.figure import BLUE, ORANGE, PALE, new_figure, own_style, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES_PER_LAYER = 0.17
#: Of deeper networks, every second, third, ... layer has its name written.
_MOST_NAMES = 80


def draw_calibration(found: Calibration, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.png and `stem`.svg and returns their paths; raises CheckpointError when they cannot be written."""
    with own_style():
        return save_figure(calibration_figure(found), stem)


def calibration_figure(found: Calibration) -> "Figure":
    """Two dots for each layer, from top to bottom: |y - y'| / |y| uncalibrated and calibrated."""
    layers, rows = found.layers, range(len(found.layers))
    before, after = [100 * fit.rounded_error for fit in layers], [100 * fit.error for fit in layers]
    shown = -(-len(layers) // _MOST_NAMES) or 1
    figure = new_figure(width=8, height=1.4 + _INCHES_PER_LAYER * len(layers) / shown)
    axes = figure.subplots()
    plain_axes(axes, xlabel="output error, % of the output's norm")
    axes.hlines(rows, after, before, color=PALE, linewidth=3)
    axes.scatter(before, rows, color=ORANGE, s=18, label="uncalibrated", zorder=2)
    axes.scatter(after, rows, color=BLUE, s=18, label="calibrated", zorder=2)
    axes.set_yticks(rows[::shown], [fit.path for fit in layers[::shown]])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(left=0)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a path may hold a dollar sign
    axes.legend(loc="upper right", frameon=False, fontsize="small")
    figure.suptitle(f"layers in the order of the run, on {found.images} images", fontsize="medium")
    return figure
