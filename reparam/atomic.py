"""Files and folders that appear whole or not at all: written beside their target, synced, then renamed into place."""

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reparam.errors import CheckpointError

#: What a full disk, a used-up quota, and a file over the largest allowed size say.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Of Linux's renameat2: paths are as the process sees them, and the two change places.
_HERE, _RENAME_EXCHANGE = -100, 2
_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Yields a path beside `target` to write to; on leaving, the finished file takes the target's place.

    When the body raises, nothing remains and an existing target is untouched.

    Raises:
        CheckpointError: the target is a folder, or the file system refuses, in the body too.
    """
    target = Path(target).resolve()
    _refuse_folder(target)
    draft = _draft_beside(target)
    try:
        with _writing_in_body(target, draft):
            yield draft
        with writing(target):
            _sync(draft)
            draft.replace(target)
            _sync(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def check_file(target: str | Path) -> None:
    """Raises CheckpointError when no file can be written at `target`; makes its folder."""
    target = Path(target).resolve()
    _refuse_folder(target)
    draft = _draft_beside(target)
    with writing(target):
        draft.touch()
        draft.unlink()


def write_text(target: str | Path, text: str) -> None:
    """Writes UTF-8 text to `target` by way of `atomic_file`."""
    with atomic_file(target) as draft:
        draft.write_text(text, encoding="utf-8")


def as_file_name(text: str) -> str:
    """The text with every character that does not belong in a file name made a dash."""
    return re.sub(r"[^\w.+]+", "-", text).strip("-.")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an error of the file system into a CheckpointError that names `path`, by its final name if in a draft."""
    try:
        yield
    except OSError as error:
        has_no_room = error.errno in _NO_ROOM
        advice = "Free some space or choose another disk" if has_no_room else "Check the disk and rights"
        raise CheckpointError(
            f"{_final(Path(path))}: cannot be written: {error.strerror or error}. {advice}; what was there before is "
            "as it was."
        ) from error


@contextmanager
def atomic_folder(target: str | Path, *, keep_others: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target` to fill; on leaving, it takes the target's place.

    A target that exists changes places with the new folder when that is complete. Where the file system cannot do that
    in one step, it is moved aside, and put back if the move fails.

    Args:
        target: a new path, an empty folder, or a checkpoint folder that reparam made.
        keep_others: carry over what the old folder holds and the new one does not, such as the stages of a run.

    Raises:
        CheckpointError: the target is a file, or a folder that reparam did not make, or the file system refuses, in
            the body too.
    """
    target = Path(target).resolve()
    refuse_foreign(target)
    draft = _draft_beside(target)
    try:
        with writing(target):
            draft.mkdir()
        with _writing_in_body(target, draft):
            yield draft
        with writing(target):
            if keep_others and target.is_dir():
                _carry_over(target, draft)
            _sync_tree(draft)
            _swap_in(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse_foreign(target: str | Path) -> None:
    """Raises CheckpointError when `target` holds something that reparam did not make and so must not replace."""
    target = Path(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target}: wanted a folder to write, got a file. Choose another folder or remove it.")
    if any(target.iterdir()) and not _is_checkpoint(target):
        raise CheckpointError(
            f"{target}: the folder is not empty and its config.json, if any, was not written by reparam, so it is "
            "not replaced. Choose another folder or empty this one."
        )


def _refuse_folder(target: Path) -> None:
    if target.is_dir():
        raise CheckpointError(f"{target}: wanted a file to write, got a folder. Choose another name.")


def _is_checkpoint(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "reparam" in config


def _draft_beside(target: Path) -> Path:
    """A free name in the target's own folder: a rename is atomic only within one file system."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _final(path: Path) -> Path:
    """The path as it will be once the drafts in it have taken their targets' places."""
    return Path(*(match[1] if (match := _DRAFT.fullmatch(part)) else part for part in path.parts))


@contextmanager
def _writing_in_body(target: Path, draft: Path) -> Iterator[None]:
    """As `writing`, and lets pass what fails elsewhere: a body may also read files or the network."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM and not (error.filename and Path(error.filename).is_relative_to(draft)):
            raise
        with writing(target):
            raise


def _carry_over(old: Path, new: Path) -> None:
    for entry in old.iterdir():
        copy = new / entry.name
        if copy.exists() or _DRAFT.fullmatch(entry.name):  # what a killed process has left
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, copy, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(entry, copy)


def _link_or_copy(source: str | Path, copy: str | Path) -> None:
    """A hard link costs no space and keeps files that are open for appending; not every file system has them."""
    try:
        os.link(source, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, copy, follow_symlinks=False)


def _swap_in(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
    elif not _exchange(draft, target):  # a process that is killed between the next two moves leaves no target
        aside = _draft_beside(target)
        target.rename(aside)
        try:
            draft.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two paths in one step, and returns whether the system and the file system can."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2  # Linux with glibc 2.28 or musl 1.2.6
    except (AttributeError, OSError, TypeError):
        return False
    done: int = swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
