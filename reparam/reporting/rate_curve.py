"""The curve of a learning-rate range test: loss over rate, with the rates that it suggests."""

from pathlib import Path
from typing import TYPE_CHECKING

from reparam.reporting.figure import BLUE, GREEN, VERMILION, new_figure, own_style, plain_axes, save_figure
from reparam.train.rate_test import RateTest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_rate_test(test: RateTest, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.png and `stem`.svg and returns their paths; raises CheckpointError when they cannot be written."""
    with own_style():
        return save_figure(rate_figure(test), stem)


def rate_figure(test: RateTest) -> "Figure":
    """The loss of each step and its smoothed course over the rate on a logarithmic axis; dashed, what is suggested."""
    figure = new_figure(width=7.5, height=4)
    axes = figure.subplots()
    plain_axes(axes, xlabel="learning rate", ylabel="loss")
    axes.set_xscale("log")
    if test.rates:
        axes.set_xlim(test.rates[0] / 2, 2 * test.rates[-1])
    axes.plot(test.rates, test.losses, ".", color=BLUE, alpha=0.35, markersize=4, label="each step")
    axes.plot(test.smoothed_rates, test.smoothed_losses, color=BLUE, linewidth=1.6, label="smoothed")
    for name, rate, colour in (
        ("steepest", test.steepest, VERMILION),
        ("tenth of the best", test.tenth_of_best, GREEN),
    ):
        if rate is not None:
            axes.axvline(rate, color=colour, linestyle="--", linewidth=1.2, label=f"{name}, {rate:.2g}")
    if test.losses:
        # The last losses before it ended, which may be huge, would flatten all others.
        low, high = min(*test.losses, *test.smoothed_losses), max(test.losses[: 1 + len(test.losses) // 2])
        margin = 0.1 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="small", borderaxespad=0)
    return figure
