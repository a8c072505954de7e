"""Tables of `reparam bench` that are done already, and what tells one from another: its settings and what it measured.

Names do not: a run may be trained further under its name, and a recipe, a factory or a file of weights edited.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from reparam import __version__
from reparam.api.bench_records import BenchCase
from reparam.api.measuring import Measuring
from reparam.api.profile import original_of
from reparam.api.recipes import check_recipe
from reparam.api.subject import is_checkpoint
from reparam.atomic import check_file
from reparam.checkpoint.record import read_record
from reparam.cost.baselines.base import Baseline
from reparam.errors import CheckpointError
from reparam.journal import Journal
from reparam.models.sources import split_source


def bench_journal(out: str | Path, *, fresh: bool) -> Journal[BenchCase]:
    """The finished tables beside the result `out`."""
    return Journal(journal_file(out), BenchCase, fresh=fresh)


def journal_file(out: str | Path) -> Path:
    """Raises CheckpointError for a name that cannot be written or is none of a JSON file."""
    path = Path(out)
    if path.suffix != ".json":
        raise CheckpointError(f"{path}: the result is a JSON file; give a name that ends in .json")
    check_file(path)
    return path.with_suffix(".jsonl")


def settings_of(how: Measuring, forms: Sequence[Baseline], *, limit: float, machine: str) -> str:
    """How all tables of a call are measured, in words."""
    engines = " ".join(engine.name for engine in (*how.baselines, *forms))
    where = f"{machine}, {how.threads} threads, reparam {__version__}, torch {torch.__version__}"
    return f"limit {limit:g} s, {engines}; {where}"


def digest_of(name: str, recipe: str | Path | None, *, weights: str, overrides: Sequence[str]) -> str:
    """Sixteen hexadecimal digits over what one name stands for: a run with its original, or a model and its recipe."""
    digest = hashlib.sha256()
    for part in _contents(name, recipe, weights=weights, overrides=overrides):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _contents(name: str, recipe: str | Path | None, *, weights: str, overrides: Sequence[str]) -> Iterator[bytes]:
    if is_checkpoint(name):
        for folder in (Path(name), original_of(name)):
            if folder is not None:
                yield read_record(folder).model_dump_json().encode()  # it holds the digest of the weights
        return
    assert recipe is not None
    yield check_recipe(recipe, overrides=overrides).model_dump_json().encode()
    yield weights.encode()
    source, place = split_source(name)
    files = [Path(weights)]
    if source == "file":
        files.append(Path(place.rpartition(":")[0]))
    if source == "local-dir":
        files += sorted(Path(place).iterdir()) if Path(place).is_dir() else []
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                yield hashlib.file_digest(opened, "sha256").digest()
