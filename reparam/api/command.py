"""The command line that does again what a call of a verb did, for the records that are left behind."""

import shlex
from collections.abc import Mapping
from typing import Any

from reparam.recipe.data_settings import DataSettings
from reparam.recipe.flags import data_flags


def command_line(verb: str, *arguments: object, options: Mapping[str, Any], data: DataSettings | None = None) -> str:
    """Returns `reparam VERB ARGUMENTS --option value ...`.

    Args:
        verb: the command.
        arguments: positional ones.
        options: by name without dashes; None, False and empty ones are left out, a list repeats its option.
        data: those that differ from their default are given.
    """
    words = ["reparam", verb, *map(str, arguments)]
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            words += _words(name, one)
    words += data_flags(data) if data is not None else ()
    return shlex.join(words)


def _words(name: str, value: object) -> list[str]:
    if value is None or value is False or value == "":
        return []
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]
