"""The journal of one analysis: what it is about, the dense figures, then a line for each finished choice."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from reparam.errors import CheckpointError
from reparam.journal import Journal
from reparam.tradeoff.records import DenseFigures, Entry, SiteSensitivity, Subject

_SUBJECT, _DENSE = "subject", "dense"


class SensitivityJournal:
    """Lines of one subject.

    Args:
        path: of the file; its folder is made.
        subject: what is measured now.
        fresh: forget what the file holds.
    Raises:
        CheckpointError: the file is of another subject, or no journal.
    """

    def __init__(self, path: Path, subject: Subject, *, fresh: bool) -> None:
        self._path, self._journal = path, Journal(path, Entry, fresh=fresh)
        entries = self._journal.read()
        self.known: dict[str, SiteSensitivity] = {name: e.site for name, e in entries.items() if e.site is not None}
        self.dense = entries[_DENSE].dense if _DENSE in entries else None
        header = entries.get(_SUBJECT)
        if header is None or header.subject is None:
            self._journal.add(Entry(name=_SUBJECT, subject=subject))
        elif differences := list(_differences(header.subject, subject)):
            raise self._of_another(differences)

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


def _differences(before: Subject, now: Subject) -> Iterator[str]:
    if before.weights != now.weights:
        yield f"of model {before.model}, now {now.model} with other weights"
    if before.recipes != now.recipes:
        was, wanted = (", ".join(recipe.name for recipe in subject.recipes) for subject in (before, now))
        yield f'recipes "{was}", now "{wanted}"' + (" with other rules" if was == wanted else "")
    if before.data != now.data:
        yield f"data {before.data}, now {now.data}"
    if before.images != now.images:
        yield f"{before.images} images, now {now.images}"
