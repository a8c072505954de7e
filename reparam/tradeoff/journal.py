"""The journal of one analysis: what it is about, the dense figures, then a line for each finished choice."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reparam.errors import CheckpointError
from reparam.journal import Journal
from reparam.tradeoff.records import DenseFigures, Entry, SiteSensitivity, Subject

_SUBJECT, _DENSE = "subject", "dense"


class SensitivityJournal:
    """Lines of one subject.

    Args:
        path: of the file; its folder is made.
        subject: what is measured now.
        fresh: forget what the file holds, once the measurement begins.
    Raises:
        CheckpointError: the file is of another subject, or no journal.
    """

    def __init__(self, path: Path, subject: Subject, *, fresh: bool) -> None:
        check_journal(path)
        self._path, self._subject, self._fresh = path, subject, fresh
        self._journal = Journal(path, Entry, fresh=False)
        entries = {} if fresh else self._journal.read()
        self.known: dict[str, SiteSensitivity] = {name: e.site for name, e in entries.items() if e.site is not None}
        self.dense = entries[_DENSE].dense if _DENSE in entries else None
        header = entries[_SUBJECT].subject if _SUBJECT in entries else None
        self._is_begun = header is not None and len(entries) > 1
        differences = list(_differences(header, subject)) if header is not None and self._is_begun else []
        if differences:
            raise self._of_another(differences)

    def begin(self) -> None:
        """Writes down the subject, and forgets what the file held if it is to; before the first figure is added."""
        if not self._is_begun:
            self._path.unlink(missing_ok=True)
            self._journal.add(Entry(name=_SUBJECT, subject=self._subject))
            self._is_begun = True

    def add_dense(self, dense: DenseFigures) -> None:
        """Writes down the dense figures; raises CheckpointError where the lines so far were measured on others."""
        if self.dense is None:
            self._journal.add(Entry(name=_DENSE, dense=dense))
        elif (self.dense.top1, self.dense.images) != (dense.top1, dense.images):
            was, now = (f"{d.top1:.2f} % of {d.images} images" for d in (self.dense, dense))
            raise self._of_another([f"its dense model got {was} right, now {now}: the images have changed"])
        self.dense = dense

    def add(self, key: str, site: SiteSensitivity) -> None:
        """Writes down a finished choice."""
        self._journal.add(Entry(name=key, site=site))
        self.known[key] = site

    def _of_another(self, differences: Sequence[str]) -> CheckpointError:
        return CheckpointError(
            f"{self._path} is of another analysis: {'; '.join(differences)}. Start over with --fresh, or name another "
            "file with --out."
        )


def check_journal(path: Path) -> None:
    """Raises CheckpointError for a file that is there and does not begin as a journal of sensitivities does."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        first = file.readline()
    try:
        is_journal = not first.endswith(b"\n") or Entry.model_validate_json(first).name == _SUBJECT
    except ValidationError:
        is_journal = False
    if not is_journal:
        raise CheckpointError(
            f"{path}: `reparam sensitivity` keeps its journal there, and this file is another one; name another result "
            "with --out"
        )


def _differences(before: Subject, now: Subject) -> Iterator[str]:
    if before.weights != now.weights:
        yield f"of model {before.model}, now {now.model} with other weights"
    if before.recipes != now.recipes:
        was, wanted = (", ".join(recipe.name for recipe in subject.recipes) for subject in (before, now))
        yield f'recipes "{was}", now "{wanted}"' + (" with other rules" if was == wanted else "")
    if before.data != now.data:
        yield f"{_said(before.data)}, now {_said(now.data)}"
    if before.images != now.images:
        yield f"{before.images} images, now {now.images}"


def _said(data: Mapping[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in data.items()) or "no data options"
