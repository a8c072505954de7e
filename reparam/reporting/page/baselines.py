"""What `reparam profile` measured in words: against the best dense engine, and which engines have no figures."""

from collections.abc import Iterator

from reparam.cost.measurement import Comparison, Measured
from reparam.reporting.page import words
from reparam.reporting.page.summary import WIDE_SPREAD, Cell


def verdicts(measured: Measured) -> tuple[Cell, ...]:
    """The converted model against the fastest dense engine, one for each batch size; "bad" where it is slower."""
    return tuple(_verdict(comparison) for comparison in measured.comparisons)


def _verdict(found: Comparison) -> Cell:
    times = words.factor(found.dense_ms, found.converted_ms, less="faster", more="slower")
    best = f"the best dense ({found.title}) at batch {found.batch_size}"
    text = f"as fast as {best}" if times == "same" else f"{times} than {best}"
    uncertain = f"uncertain, rounds spread by {words.share(found.spread)}" if found.spread > WIDE_SPREAD else ""
    return Cell(text=text, note=uncertain, tone="bad" if times.endswith("slower") else "")


def left_out(measured: Measured) -> tuple[str, ...]:
    """Each engine without figures, with its reason; once, where that is the same for all batch sizes."""
    return tuple(dict.fromkeys(_without_figures(measured)))


def _without_figures(measured: Measured) -> Iterator[str]:
    for found in measured.measurements:
        if found.latency is None:
            yield f"{found.title} {found.status}: {found.reason}."
