"""States of a training in progress on disk: written whole, checked when read, the newest ones kept.

FOLDER/STAGE-updates-000123/state.pt, state.json      the state, and its size and SHA-256, which tell a torn one
"""

import hashlib
import io
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reparam.atomic import as_file_name, atomic_folder
from reparam.train.state import TrainState

_STATE, _SEAL = "state.pt", "state.json"


def write_state(folder: Path, state: TrainState, *, keep: int) -> None:
    """Writes a state into `folder`, complete or not at all, and removes all but the `keep` newest ones of its stage.

    Raises:
        CheckpointError: the file system refuses; the older states are untouched.
    """
    target = folder / f"{as_file_name(state.stage)}-updates-{state.updates:09}"
    if target.exists():
        if _read(target) is not None:
            return  # written before the run was stopped, and resuming came to the same place
        shutil.rmtree(target, ignore_errors=True)
    # By way of memory: of a full disk, torch says that its own invariant is broken.
    bits = io.BytesIO()
    torch.save(state.as_dict(), bits)
    with atomic_folder(target) as draft:
        (draft / _STATE).write_bytes(bits.getbuffer())
        (draft / _SEAL).write_text(json.dumps(_seal(draft / _STATE)), encoding="utf-8")
    for old in _states(folder, state.stage)[keep:]:
        shutil.rmtree(old, ignore_errors=True)  # a part that stays is not intact, and is passed over


def newest_state(folder: Path, stage: str, *, passed_over: Callable[[Path], None]) -> TrainState | None:
    """Returns the newest intact state of a stage, or None; `passed_over` hears of each newer one that is not intact."""
    for path in _states(folder, stage):
        state = _read(path)
        if state is not None:
            return state
        passed_over(path)
    return None


def forget_states(folder: Path) -> None:
    """Removes all states."""
    shutil.rmtree(folder, ignore_errors=True)


def _states(folder: Path, stage: str) -> list[Path]:
    """Folders of a stage's states, the newest first."""
    pattern = re.compile(re.escape(as_file_name(stage)) + r"-updates-\d{9,}")
    found = [path for path in folder.iterdir() if pattern.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def _read(path: Path) -> TrainState | None:
    try:
        if json.loads((path / _SEAL).read_text(encoding="utf-8")) != _seal(path / _STATE):
            return None
        values: dict[str, Any] = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        return TrainState.from_dict(values)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None


def _seal(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
