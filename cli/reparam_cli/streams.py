"""Results go to stdout, everything else to stderr, so that `--json` output can be piped as it is."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol


class JsonModel(Protocol):
    """A pydantic model, as far as this file needs one."""

    def model_dump(self, *, mode: str, by_alias: bool) -> dict[str, Any]:
        """Returns the model as plain data."""
        ...


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Sends what libraries print during the work to stderr."""
    with redirect_stdout(sys.stderr):
        yield


def show_notes() -> None:
    """Prints what `reparam` logs at INFO and above as `note: ...` and `warning: ...` on stderr."""
    logger = logging.getLogger("reparam")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_NoteFormatter())
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def plain(record: JsonModel) -> dict[str, Any]:
    """Returns a record as the plain data that `--json` prints; recipes keep the keys of their TOML form."""
    return record.model_dump(mode="json", by_alias=True)


def print_json(value: Any) -> None:
    """Prints one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


class _NoteFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        kind = "note" if record.levelno < logging.WARNING else record.levelname.lower()
        return f"{kind}: {record.getMessage()}"
