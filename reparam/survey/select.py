"""Which architectures a survey is about: names, shorthands and globs."""

import fnmatch
import re
from collections.abc import Sequence

import timm

from reparam.errors import ModelError
from reparam.models.names import resolve_name
from reparam.suggest import did_you_mean
from reparam.survey.examine import family_of

_GLOB = set("*?[")


def select(patterns: str | Sequence[str]) -> list[str]:
    """The timm architectures that any of the patterns picks, sorted.

    Raises:
        ModelError: a name that timm does not know, or a glob that picks nothing; close names are listed.
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    known = timm.list_models()
    return sorted({name for pattern in wanted for name in _picked(pattern, known)})


def families(names: Sequence[str]) -> dict[str, list[str]]:
    """The names by the module of timm that registers them, largest family first."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(family_of(name), []).append(name)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _picked(pattern: str, known: Sequence[str]) -> list[str]:
    if not _GLOB & set(pattern):
        return [resolve_name(pattern).name.partition(".")[0]]
    found = fnmatch.filter(known, pattern)
    if not found:
        raise ModelError(f'no model of timm {timm.__version__} matches "{pattern}".{_hint(pattern)}')
    return found


def _hint(pattern: str) -> str:
    """Names that begin almost like the part of the pattern before its first wildcard."""
    stem = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return did_you_mean(stem, {name[: len(stem)] for name in timm.list_models()})
