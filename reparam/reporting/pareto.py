"""The front of a search: the least predicted loss for every budget, with the mix that was taken."""

from pathlib import Path
from typing import TYPE_CHECKING

from reparam.reporting.figure import BLUE, GREY, VERMILION, new_figure, own_style, plain_axes, save_figure
from reparam.tradeoff.outcome import SearchResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How far a logarithmic axis goes beyond its largest value.
_HEADROOM = 3


def draw_front(result: SearchResult, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.png and `stem`.svg and returns their paths; raises CheckpointError when they cannot be written."""
    with own_style():
        return save_figure(front_figure(result), stem)


def front_figure(result: SearchResult) -> "Figure":
    """Predicted divergence and predicted drop over the share of the dense model's cost, one above the other."""
    figure = new_figure(width=7, height=6)
    divergence, drop = figure.subplots(2, 1, sharex=True)
    plain_axes(divergence, ylabel="predicted KL, nats")
    plain_axes(drop, xlabel=f"{result.quantity}, share of the dense model's", ylabel="predicted top-1 drop, points")
    shares = [point.shares[result.quantity] for point in result.front]
    taken = result.predicted
    for axes, values, own in (
        (divergence, [point.kl for point in result.front], taken.kl),
        (drop, [point.top1_drop for point in result.front], taken.top1_drop),
    ):
        axes.plot(shares, values, ".-", color=BLUE, linewidth=1.2, drawstyle="steps-pre", label="least divergence")
        axes.plot(taken.shares[result.quantity], own, "o", color=VERMILION, markersize=7, label="taken")
        axes.axvline(1, color=GREY, linewidth=0.8)
    smallest = min((point.kl for point in result.front if point.kl > 0), default=None)
    if smallest is not None:
        divergence.set_yscale("symlog", linthresh=smallest)  # zero, of the dense model, is on the front
        divergence.set_ylim(0, _HEADROOM * max(point.kl for point in result.front))
    divergence.legend(loc="upper right", frameon=False, fontsize="small")
    figure.suptitle(f"sums of what each choice loses alone, untrained; {result.images} images", fontsize="medium")
    return figure
