"""The setting `latency`: where the latencies of a mixture's two experts come from, or the two numbers themselves."""

import math
from typing import Literal, get_args

LatencySource = Literal["recipe", "measured", "modelled"]
LATENCY_SOURCES: tuple[LatencySource, ...] = get_args(LatencySource)
WANTED = "recipe, measured, modelled, or two finite numbers above 0 such as 0.6,0.4"


def parse_latency(text: str) -> LatencySource | tuple[float, float]:
    """Returns the source that a text names, or its numbers: time of the multiply and of the shift expert, any unit.

    Raises:
        ValueError: neither; the message names every fault.
    """
    named = next((source for source in LATENCY_SOURCES if source == text), None)
    if named is not None:
        return named
    parts = [part.strip() for part in text.split(",")]
    faults = [] if len(parts) == 2 else [f"it has {len(parts)} part{'s' if len(parts) > 1 else ''}"]
    faults += [f'"{part}" is {fault}' for part in parts if (fault := _fault(part))]
    if faults:
        raise ValueError(f'"{text}": {" and ".join(faults)}')
    return float(parts[0]), float(parts[1])


def _fault(part: str) -> str | None:
    try:
        value = float(part)
    except ValueError:
        return "not a number"
    if not math.isfinite(value):
        return "not finite"
    return None if value > 0 else "not above 0"
