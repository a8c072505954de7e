"""Figures as files: one look, colours that colour-blind readers tell apart, the same bytes from the same data.

matplotlib is an extra (`plots`) and is imported only where something is drawn; pyplot and its global figures never are.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from reparam.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette (jfly.uni-koeln.de/color, 2002).
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
INK, GREY, PALE = "#222222", "#777777", "#DDDDDD"
#: Why there is no picture, and what to do.
NO_MATPLOTLIB = "matplotlib is not installed, so no curves are drawn; pip install 'reparam[plots]'"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(*, width: float, height: float) -> "Figure":
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: "Axes", *, xlabel: str = "", ylabel: str = "") -> None:
    """Labels axes and leaves them two spines and a pale grid."""
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize="small")
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def save_figure(figure: "Figure", stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.png and `stem`.svg and returns their paths; the same figure gives the same bytes.

    Raises:
        CheckpointError: a file cannot be written.
    """
    import matplotlib

    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with matplotlib.rc_context({"svg.hashsalt": "reparam", "svg.fonttype": "none"}):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is found; each save would search anew, half of its time
        with atomic_file(png) as draft:
            figure.savefig(draft, format="png", dpi=120)
        with atomic_file(svg) as draft:
            figure.savefig(draft, format="svg", metadata={"Date": None})
    return png, svg
