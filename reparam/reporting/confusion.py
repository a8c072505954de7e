"""The confusion matrix of an evaluation as a picture or a table in a file."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reparam.atomic import check_file, write_text
from reparam.errors import OptionError
from reparam.reporting.figure import can_draw, own_style, write_figure
from reparam.train.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PICTURES = (".png", ".svg")
#: Above this many classes neither names nor counts can be read.
_MOST_NAMED = 30
#: Inches of the square that the matrix fills, at least and at most.
_SIDE = (3.5, 9.0)
_CELL = 0.5
_DPI = 150


def check_confusion_file(target: str | Path) -> None:
    """Raises OptionError or CheckpointError, before anything costs time, when `write_confusion` could not write it."""
    suffix = Path(target).suffix.lower()
    if suffix not in (*_PICTURES, ".csv"):
        raise OptionError(f"{target}: the confusion matrix can be written as .png, .svg or .csv; name such a file")
    if suffix in _PICTURES and not can_draw():
        raise OptionError('pictures are drawn with matplotlib, which is not installed: pip install "reparam[plots]"')
    check_file(target)


def write_confusion(target: str | Path, evaluation: Evaluation) -> None:
    """Writes the matrix, row the true class and column the predicted one; the file's suffix says how.

    Args:
        target: .png or .svg for a picture, each row in shares of its images; .csv for the counts with their names.
        evaluation: one that has `confusion`.
    """
    if Path(target).suffix.lower() == ".csv":
        write_text(target, _csv(evaluation))
        return
    with own_style():
        write_figure(_draw(evaluation), Path(target), dpi=_dpi(evaluation))


def _csv(evaluation: Evaluation) -> str:
    names, text = [row.name for row in evaluation.per_class], io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, evaluation.confusion or (), strict=True))
    return text.getvalue()


def _draw(evaluation: Evaluation) -> "Figure":
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = np.array(evaluation.confusion)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    is_named = len(counts) <= _MOST_NAMED
    side = _side(len(counts))
    figure = Figure(figsize=(side + 2.5, side + 1.5), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    # A wide matrix is mostly diagonal: the cube root makes its rare mistakes visible.
    norm = PowerNorm(1 if is_named else 1 / 3, vmin=0, vmax=100)
    picture = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="none")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the class's images, %")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"top-1 {evaluation.top1:.2f} % of {evaluation.images} images")
    if is_named:
        _name(axes, [row.name for row in evaluation.per_class])
        _write_counts(axes, counts, shares)
    return figure


def _name(axes: "Axes", names: list[str]) -> None:
    short = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    steep = max(map(len, short)) > 3
    axes.set_xticks(range(len(names)), short, rotation=90 if steep else 0)
    axes.set_yticks(range(len(names)), short)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a name may hold a dollar sign


def _write_counts(axes: "Axes", counts: Any, shares: Any) -> None:
    room = _side(len(counts)) / len(counts)  # inches
    size = min(10.0, 72 * room / (0.7 * len(str(counts.max()))))
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 50 else "black"
        text = axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=size)
        text.set_in_layout(False)  # measuring 900 of them takes seconds, and they stay in their cells


def _side(classes: int) -> float:
    least, most = _SIDE
    return min(max(least, _CELL * classes), most)


def _dpi(evaluation: Evaluation) -> float:
    """At least one dot for every class."""
    return max(_DPI, 1.1 * len(evaluation.per_class) / _SIDE[1])
