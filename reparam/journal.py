"""One JSON line per finished task, so that a run that was cut short goes on where it stopped."""

import os
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from pydantic import ValidationError

from reparam.errors import CheckpointError


class Named(Protocol):
    """A pydantic model with a name that tells its tasks apart, as far as this file needs one."""

    @property
    def name(self) -> str:
        """Which task the line is about."""
        ...

    @classmethod
    def model_validate_json(cls, json_data: bytes, /) -> Self:
        """Reads a line."""
        ...

    def model_dump_json(self) -> str:
        """Writes a line."""
        ...


L = TypeVar("L", bound=Named)


class Journal(Generic[L]):
    """A file of records of one type. A later line of the same name replaces an earlier one.

    A last line without its end is what an interrupted write leaves; it is cut off.
    """

    def __init__(self, path: Path, line: type[L], *, fresh: bool) -> None:
        self._path = path
        self._line: type[L] = line
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)

    def read(self) -> dict[str, L]:
        """The records so far, by name.

        Raises:
            CheckpointError: a line is no record of this type.
        """
        if not self._path.exists():
            return {}
        text = self._path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            os.truncate(self._path, len(whole))
        records = [self._parsed(line, number) for number, line in enumerate(whole.splitlines(), start=1)]
        return {record.name: record for record in records}

    def add(self, record: L) -> None:
        """Appends one record and makes sure that it is on the disk."""
        with self._path.open("ab") as file:
            file.write(record.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _parsed(self, line: bytes, number: int) -> L:
        try:
            return self._line.model_validate_json(line)
        except ValidationError as error:
            raise CheckpointError(
                f"{self._path}, line {number}: this is no record of this version of reparam ({error.error_count()} "
                "faults). Start over with --fresh, or name another file for the result."
            ) from None
