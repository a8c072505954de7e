"""The bars of a sensitivity analysis: divergence and lost accuracy of each choice, the most harmful on top."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from reparam.reporting.figure import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    new_figure,
    own_style,
    plain_axes,
    save_figure,
)
from reparam.tradeoff.records import Sensitivity, SiteSensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY)
#: Of more choices, the most harmful ones are drawn.
_MOST_BARS = 60
_INCHES_PER_BAR = 0.2


def draw_sensitivity(found: Sensitivity, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.png and `stem`.svg and returns their paths; raises CheckpointError when they cannot be written."""
    with own_style():
        return save_figure(sensitivity_figure(found), stem)


def sensitivity_figure(found: Sensitivity) -> "Figure":
    """Two rows of bars side by side, one line for each choice, coloured by operator."""
    sites = found.sites[:_MOST_BARS]
    figure = new_figure(width=9, height=1.4 + _INCHES_PER_BAR * len(sites))
    divergence, accuracy = figure.subplots(1, 2, sharey=True)
    plain_axes(divergence, xlabel="KL(dense || converted), nats")
    plain_axes(accuracy, xlabel="top-1 lost, points")
    colours = dict(zip(dict.fromkeys(site.operator for site in found.sites), itertools.cycle(_COLOURS), strict=False))
    for operator, colour in colours.items():
        rows = [row for row, site in enumerate(sites) if site.operator == operator]
        divergence.barh(rows, [sites[row].kl for row in rows], color=colour, label=operator)
        accuracy.barh(rows, [sites[row].top1_drop for row in rows], color=colour)
    if found.sites and found.sites[0].kl > 0:
        divergence.set_xscale("log")  # divergences differ by orders of magnitude
        divergence.set_xlim(left=min(site.kl for site in sites if site.kl > 0) / 2)
    divergence.set_yticks(range(len(sites)), [_label(found, site) for site in sites])
    divergence.set_ylim(len(sites) - 0.4, -0.6)
    accuracy.axvline(0, color=GREY, linewidth=0.8)
    for label in divergence.get_yticklabels():
        label.set_parse_math(False)  # a path may hold a dollar sign
    divergence.legend(loc="lower right", frameon=False, fontsize="small")
    more = f", the {len(sites)} worst of {len(found.sites)}" if len(sites) < len(found.sites) else ""
    figure.suptitle(
        f"one site converted, untrained{more}; {found.images} images, dense top-1 {found.dense_top1:.2f} %",
        fontsize="medium",
    )
    return figure


def _label(found: Sensitivity, site: SiteSensitivity) -> str:
    options = (f" {key}={value}" for key, value in found.told_apart_by(site).items())
    return f"{site.path or '(the model)'}{''.join(options)}"
