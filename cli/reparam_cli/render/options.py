"""Which options of an operator are worth showing: those that differ from its defaults."""

from collections.abc import Mapping
from typing import Any

import reparam


def non_default(operator: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that differ from the operator's defaults; all of them where it has none to compare with."""
    try:
        defaults = reparam.OPERATORS.get(operator).Options().model_dump(mode="json")
    except (reparam.errors.ReparamError, ValueError):
        defaults = {}
    return _difference(options, defaults)


def _difference(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in options.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            if inner := _difference(value, default):
                kept[key] = inner
        elif key not in defaults or (list(value) if isinstance(value, tuple) else value) != default:
            kept[key] = value
    return kept
