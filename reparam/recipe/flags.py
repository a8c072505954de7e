"""Settings as the flags that give them, for the command lines that records hold."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from reparam.recipe.data_settings import DataSettings


def flag(name: str, value: Any) -> list[str]:
    """The words that give one setting a value: a flag alone for True, `none` for None, several words for a tuple."""
    words = value if isinstance(value, tuple) else (value,)
    spelled = [] if value is True else ["none" if word is None else str(word) for word in words]
    return [f"--{name.replace('_', '-')}", *spelled]


def data_flags(data: DataSettings) -> Iterator[str]:
    """The words that give the data settings that differ from their defaults."""
    for entry in fields(DataSettings):
        value = getattr(data, entry.name)
        if value != entry.default:
            yield from flag(entry.name, value)
