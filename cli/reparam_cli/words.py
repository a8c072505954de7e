"""How tables of options are written in one line."""

from collections.abc import Mapping
from typing import Any


def written(table: Mapping[str, Any]) -> str:
    """Writes `{"bits": 4, "shift": {"domain": "log"}}` as `bits=4, shift (domain=log)`."""
    return ", ".join(
        f"{key} ({written(value)})" if isinstance(value, Mapping) else f"{key}={_value(value)}"
        for key, value in table.items()
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(_value(item) for item in value)
    return str(value)


def counted(n: int, noun: str) -> str:
    """Writes `1 site`, `2 sites`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
