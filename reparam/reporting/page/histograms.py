"""Exponent histograms as bars: all layers together, then each one, on one axis of exponents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reparam.reporting.exponents import ExponentHistogram
from reparam.reporting.page import words


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramBar:
    """One exponent, or zero: the share of the weights that have it, and its height in percent of the highest bar."""

    label: str
    height: float
    tip: str
    is_zero: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The bars of one layer."""

    title: str
    note: str
    bars: tuple[HistogramBar, ...]


def draw_histograms(layers: Sequence[ExponentHistogram]) -> tuple[Histogram, ...]:
    """The histogram of all layers together, and one of each; all on the same exponents, the lowest first, then zero."""
    counted = [layer for layer in layers if layer.counts]
    if not counted:
        return ()
    lowest = min(layer.lowest for layer in counted)
    highest = max(layer.lowest + len(layer.counts) - 1 for layer in counted)
    exponents = range(lowest, highest + 1)
    together = {p: sum(_counts(layer).get(p, 0) for layer in layers) for p in exponents}
    zeros, weights = sum(layer.zeros for layer in layers), sum(layer.weights for layer in layers)
    bits = " or ".join(map(str, sorted({layer.bits for layer in layers})))
    note = f"{words.amount(weights)} weights in {len(layers)} layers, {bits} bits"
    every = Histogram(title="all shift layers", note=note, bars=_bars(exponents, together, zeros))
    return every, *(_of_layer(layer, exponents) for layer in layers)


def _of_layer(layer: ExponentHistogram, exponents: range) -> Histogram:
    note = f"{words.amount(layer.weights)} weights, {layer.bits} bits"
    return Histogram(title=layer.path, note=note, bars=_bars(exponents, _counts(layer), layer.zeros))


def _counts(layer: ExponentHistogram) -> dict[int, int]:
    return {layer.lowest + i: n for i, n in enumerate(layer.counts)}


def _bars(exponents: range, counts: Mapping[int, int], zeros: int) -> tuple[HistogramBar, ...]:
    every = sum(counts.values()) + zeros
    largest = max([*counts.values(), zeros])
    bars = [_bar(f"±{words.power(p)}", counts.get(p, 0), every, largest) for p in exponents]
    return (*bars, _bar("0", zeros, every, largest, is_zero=True))


def _bar(label: str, count: int, every: int, largest: int, *, is_zero: bool = False) -> HistogramBar:
    tip = f"{label}: {100 * count / every:.1f} % ({words.amount(count)})"
    return HistogramBar(label=label, height=100 * count / largest, tip=tip, is_zero=is_zero)
