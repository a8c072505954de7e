"""Line charts as data for the template: paths in a square of 1000 by 1000, ticks in percent of its sides.

The template stretches the square over whatever room there is and writes the ticks beside it, so that text has its own
size on a phone too. Each line carries its true values, for the reader who points at it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Point = tuple[float, float]
_SIDE = 1000
#: Points of a line that are drawn; of more, evenly spaced ones.
_MOST_POINTS = 400
_MOST_DOTS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line, in pieces. `colour` is a name of the style sheet's palette, or a CSS colour; faint ones lie behind."""

    name: str
    colour: str
    pieces: Sequence[Sequence[Point]]
    is_faint: bool = False
    is_dashed: bool = False
    has_dots: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A dashed horizontal line and its name."""

    name: str
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A label at `at` percent of an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLine:
    """A line as the template takes it; `dots` is a second path, of points that can be told apart."""

    name: str
    colour: str
    path: str
    dots: str
    is_faint: bool
    is_dashed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """All that the template needs. `values` is the data for the script: the true values of each line."""

    title: str
    lines: tuple[DrawnLine, ...]
    levels: tuple[tuple[Level, float], ...]
    marks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    values: dict[str, Any]


def make_chart(
    title: str,
    lines: Sequence[Line],
    *,
    epochs: float,
    levels: Sequence[Level] = (),
    marks: Sequence[tuple[float, str]] = (),
    y_range: Point | None = None,
) -> Chart | None:
    """Scales lines to the square; None when no line has a point.

    Args:
        title: what is on the y-axis, with its unit.
        lines: in drawing order; points without a value are left out.
        epochs: what the x-axis ends at.
        levels: horizontal lines.
        marks: x of a vertical line, and its name.
        y_range: of the axis; from the points when None.
    """
    known = [(line, _finite(line)) for line in lines]
    drawn = [(line, pieces) for line, pieces in known if pieces]
    if not drawn:
        return None
    points = [point for _, pieces in drawn for piece in pieces for point in piece]
    y_ticks = _ticks(*(y_range or _range([*(y for _, y in points), *(level.y for level in levels)])))
    frame = _Frame(epochs or 1.0, y_ticks[0], y_ticks[-1])
    return Chart(
        title=title,
        lines=tuple(_draw(line, pieces, frame) for line, pieces in drawn),
        levels=tuple((level, frame.y(level.y) / _SIDE * 100) for level in levels),
        marks=tuple(Tick(at=frame.x(x) / _SIDE * 100, label=name) for x, name in marks),
        x_ticks=tuple(Tick(at=frame.x(x) / _SIDE * 100, label=f"{x:g}") for x in _whole_ticks(frame.epochs)),
        y_ticks=tuple(Tick(at=frame.y(y) / _SIDE * 100, label=_label(y, y_ticks)) for y in y_ticks),
        values={
            "epochs": frame.epochs,
            "lines": [_values(line, pieces) for line, pieces in drawn],
        },
    )


def _values(line: Line, pieces: Sequence[Sequence[Point]]) -> dict[str, Any]:
    points = [[_short(x), _short(y)] for piece in pieces for x, y in piece]
    return {"name": line.name, "colour": line.colour, "points": points}


@dataclass(frozen=True, slots=True)
class _Frame:
    """The values at the sides of the square; its left is epoch 0."""

    epochs: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        return value / self.epochs * _SIDE

    def y(self, value: float) -> float:
        return (self.top - value) / (self.top - self.bottom) * _SIDE


def _finite(line: Line) -> list[list[Point]]:
    """The pieces that can be drawn, thinned out together to the most points of a line."""
    pieces = [[(x, y) for x, y in piece if math.isfinite(y)] for piece in line.pieces]
    every = sum(map(len, pieces))
    return [_thinned(piece, most=max(2, _MOST_POINTS * len(piece) // every)) for piece in pieces if piece]


def _thinned(points: list[Point], *, most: int) -> list[Point]:
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _draw(line: Line, pieces: Sequence[Sequence[Point]], frame: _Frame) -> DrawnLine:
    places = [[f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in piece] for piece in pieces]
    has_dots = line.has_dots and sum(map(len, pieces)) <= _MOST_DOTS
    dotted = [piece for piece in places if has_dots or len(piece) == 1]  # one point alone makes no line
    return DrawnLine(
        name=line.name,
        colour=line.colour,
        path="".join("M" + "L".join(piece) for piece in places),
        dots="".join(f"M{place}h0" for piece in dotted for place in piece),
        is_faint=line.is_faint,
        is_dashed=line.is_dashed,
    )


def _range(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five, from one at or below `low` to one at or above `high`."""
    step = _step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _whole_ticks(high: float) -> range:
    """Whole numbers from 0 to `high`, about six."""
    return range(0, math.floor(high) + 1, max(1, round(_step(high / 6))))


def _step(rough: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `rough`."""
    size = 10 ** math.floor(math.log10(rough))
    return float(next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999))


def _label(value: float, ticks: Sequence[float]) -> str:
    if max(map(abs, ticks)) < 0.01 and value:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def _short(value: float) -> float:
    return float(f"{value:.5g}")
