"""Training settings from loose tables: names, types and ranges checked against `TrainSettings`, all faults at once."""

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from reparam.errors import OptionError
from reparam.recipe.expert_latency import WANTED as LATENCY_WANTED
from reparam.recipe.expert_latency import parse_latency
from reparam.recipe.settings import SETTING_NAMES, TRACKERS, TrainSettings
from reparam.suggest import did_you_mean

_TYPES: dict[str, Any] = get_type_hints(TrainSettings)
_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
_AT_LEAST_ONE = frozenset({"batch_size", "grad_accum_steps", "log_interval", "checkpoint_hist"})
_AT_MOST_ONE = frozenset({"hflip", "vflip", "reprob", "smoothing", "drop_path", "model_ema_decay"})
_CHOICES = {
    "amp_dtype": ("bfloat16", "float16"),
    "feature_loss": ("mse", "kernel"),
    "feature_points": ("blocks", "sites"),
}


class _Unfit(ValueError):
    """A value that a setting cannot take; the message says what was wanted."""


def setting_faults(table: Mapping[str, object]) -> dict[str, str]:
    """Returns key -> what is wrong with it, for every faulty key of one table; empty when there is none."""
    faults = {}
    for key, value in table.items():
        try:
            _fit(key, value)
        except _Unfit as unfit:
            faults[key] = str(unfit)
    return faults


def resolve_settings(*tables: Mapping[str, object]) -> TrainSettings:
    """Merges tables over the defaults; a later table wins.

    Raises:
        OptionError: unknown settings, wrong types, or values out of range; every fault of every table in one message.
    """
    faults = {f'setting "{key}": {fault}': None for table in tables for key, fault in setting_faults(table).items()}
    if faults:
        raise OptionError("\n".join(faults))
    merged = {key: _fit(key, value) for table in tables for key, value in table.items()}
    return TrainSettings(**merged)


def _fit(key: str, value: object) -> Any:
    if key not in SETTING_NAMES:
        hint = did_you_mean(key, SETTING_NAMES) or f" Known: {', '.join(SETTING_NAMES)}."
        raise _Unfit(f"unknown setting.{hint}")
    fitted = _convert(_TYPES[key], value)
    _check_range(key, fitted)
    return fitted


def _convert(kind: Any, value: object) -> Any:
    """Returns `value` as `kind`: whole numbers pass for numbers, "none" for the absence that TOML cannot write."""
    if get_origin(kind) is UnionType:
        kind = next(option for option in get_args(kind) if option is not type(None))
        return None if value is None or value == "none" else _convert(kind, value)
    if get_origin(kind) is tuple:
        return _pair(value)
    if kind is float and type(value) is int:
        return _widen(value)
    if type(value) is not kind:
        raise _Unfit(f"wanted {_WANTED[kind]}, got {shorten(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Unfit(f"wanted a finite number, got {value}")
    return value


def _pair(value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _Unfit(f"wanted two numbers, got {shorten(value)}")
    low, high = (_convert(float, part) for part in value)
    if low > high:
        raise _Unfit(f"wanted the smaller number first, got {shorten(value)}")
    return low, high


def _widen(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _Unfit("wanted a finite number, got one with over 300 digits") from None


def _check_range(key: str, value: object) -> None:
    if key in _CHOICES and value not in _CHOICES[key]:
        raise _Unfit(f"wanted {' or '.join(map(repr, _CHOICES[key]))}, got {shorten(value)}")
    if key == "log_with":
        _check_trackers(str(value))
    if key == "latency":
        _check_latency(str(value))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        least = 1 if key in _AT_LEAST_ONE else 0
        if number < least:
            raise _Unfit(f"wanted at least {least}, got {number}")
        if key in _AT_MOST_ONE and number > 1:
            raise _Unfit(f"wanted at most 1, got {number}")
        if key == "kd_temperature" and number == 0:
            raise _Unfit("wanted a number above 0, got 0")


def _check_trackers(names: str) -> None:
    for name in tracker_names(names):
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS) or f" Known: {', '.join(TRACKERS)}."
            raise _Unfit(f'unknown tracker "{name}".{hint}')


def tracker_names(log_with: str) -> tuple[str, ...]:
    """Splits `log_with` at its commas; spaces and repeats do not count."""
    return tuple(dict.fromkeys(name.strip() for name in log_with.split(",") if name.strip()))


def _check_latency(text: str) -> None:
    try:
        parse_latency(text)
    except ValueError as error:
        raise _Unfit(f"wanted {LATENCY_WANTED}, got {error}") from None


def shorten(value: object, *, limit: int = 60) -> str:
    """Returns a value as a message shows it: its repr, cut after `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
