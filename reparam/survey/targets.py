"""Whether the files of a coverage can be written where they are wanted, asked before hours are spent."""

import json
from collections.abc import Callable
from pathlib import Path

from reparam.atomic import check_file
from reparam.errors import CheckpointError
from reparam.survey.page import TITLE


def check_targets(result: Path, out: str | Path | None) -> None:
    """Raises CheckpointError for a name that cannot be written, or that something else has which would be lost."""
    if result.suffix == ".jsonl":
        raise CheckpointError(f"{result}: the journal gets this name; give the result one that ends in .json")
    _check(result, is_ours=_is_result, what="result")
    if out is not None:
        _check(Path(out), is_ours=lambda text: text.startswith(TITLE), what="page")


def _check(target: Path, *, is_ours: Callable[[str], bool], what: str) -> None:
    check_file(target)
    if target.exists() and not is_ours(target.read_text(encoding="utf-8", errors="replace")):
        raise CheckpointError(
            f"{target}: the file is no {what} of `reparam coverage`, so it is not replaced. Choose another name."
        )


def _is_result(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and "examinations" in found
