"""Figures as files: one look, colours that colour-blind readers tell apart, the same bytes from the same data.

matplotlib is an extra (`plots`) and is imported only where something is drawn; pyplot and its global figures never are.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reparam.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette (jfly.uni-koeln.de/color, 2002).
BLUE, SKY, ORANGE, GREEN = "#0072B2", "#56B4E9", "#E69F00", "#009E73"
VERMILION, PURPLE = "#D55E00", "#CC79A7"
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


@contextmanager
def own_style() -> Iterator[None]:
    """Around drawing and writing: the same picture whatever the user's own style, text that stays text in an SVG."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "reparam"})
        yield


def write_figure(figure: "Figure", target: Path, *, dpi: float = 120) -> None:
    """Writes a .png or .svg, in `own_style`; the same figure gives the same bytes.

    Raises:
        CheckpointError: the file cannot be written.
    """
    kind = target.suffix.lower().removeprefix(".")
    with atomic_file(target) as draft:
        figure.savefig(draft, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)


def save_figure(figure: "Figure", stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.png and `stem`.svg, as `write_figure`, and returns their paths."""
    files = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is found; each save would search anew, half of its time
    for file in files:
        write_figure(figure, file)
    return files
