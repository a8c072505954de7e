"""How the page writes numbers: three figures, a decimal prefix, a space that does not break."""

from collections.abc import Mapping
from typing import Any

DASH, _MINUS, _TIMES, _SPACE = "\u2013", "\u2212", "\u00d7", "\u00a0"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_JOULES = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"))


def amount(n: float) -> str:
    """5.72 M."""
    for size, prefix in _PREFIXES:
        if abs(n) >= 0.9995 * size:
            return f"{three_figures(n / size)}{_SPACE}{prefix}"
    return three_figures(n) if n != int(n) else str(int(n))


def energy(picojoules: float) -> str:
    """1.23 µJ."""
    for size, unit in _JOULES:
        if abs(picojoules) >= 0.9995 * size:
            return f"{three_figures(picojoules / size)}{_SPACE}{unit}"
    return f"{three_figures(picojoules)}{_SPACE}pJ"


def file_size(n: float) -> str:
    """22.9 MB."""
    return f"{amount(n)}B" if n >= 1000 else f"{amount(n)}{_SPACE}B"


def milliseconds(ms: float) -> str:
    """5.90 ms."""
    return f"{three_figures(ms)}{_SPACE}ms"


def percent(value: float) -> str:
    """98.63 %, of percentages."""
    return f"{value:.2f}{_SPACE}%"


def share(value: float) -> str:
    """41 %, of shares in [0, 1]."""
    return f"{100 * value:.0f}{_SPACE}%"


def signed_share(value: float) -> str:
    """-41 %, of changes in shares of what was."""
    return f"{100 * value:+.0f}{_SPACE}%".replace("-", _MINUS)


def points(value: float) -> str:
    """-0.27, of differences between percentages."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", _MINUS)  # + 0.0 makes -0.0 positive


def three_figures(n: float) -> str:
    """5.90, 420, 12300."""
    return f"{n:#.3g}".rstrip(".").replace("-", _MINUS) if abs(n) < 1000 else f"{n:.0f}"


def factor(before: float, after: float, *, less: str, more: str) -> str:
    """2.30x fewer, 1.20x more, same (to three figures), new or gone; the words are given."""
    if not before and not after:
        return "same"
    if not before or not after:
        return "new" if after else "gone"
    ratio = before / after
    times = three_figures(max(ratio, 1 / ratio))
    return "same" if times == "1.00" else f"{times}{_TIMES}{_SPACE}{less if ratio > 1 else more}"


def power(exponent: int) -> str:
    """2⁻³."""
    return f"2{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def options(table: Mapping[str, Any]) -> str:
    """bits 5, shift (domain log)."""
    return ", ".join(
        f"{key} ({options(value)})" if isinstance(value, Mapping) else f"{key} {_value(value)}"
        for key, value in table.items()
        if value not in (None, {}, [])
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
