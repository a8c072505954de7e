"""Finished layers on disc, so that a calibration that was stopped goes on where it stopped."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reparam.atomic import as_file_name, atomic_file
from reparam.calibrate.records import LayerFit


class Entry(NamedTuple):
    """A layer's fit and its state."""

    fit: LayerFit
    state: dict[str, Tensor]


class Journal:
    """A folder with one file for each finished layer of one calibration; entries of another one are dropped.

    Args:
        folder: made with the first entry.
        key: tells calibrations apart, as `digest` makes it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key

    def read(self, path: str) -> Entry | None:
        """The entry of the layer at `path`, if this calibration has finished it."""
        file = self._file(path)
        if not file.is_file():
            return None
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("key") != self._key:
                return None
            fit = LayerFit.model_validate(json.loads(metadata["fit"]))
            return Entry(fit, {name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118  # no mapping

    def write(self, path: str, entry: Entry) -> None:
        """Keeps a finished layer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in entry.state.items()}
        with atomic_file(self._file(path)) as draft:
            save_file(state, draft, metadata={"key": self._key, "fit": entry.fit.model_dump_json()})

    def remove(self) -> None:
        """Drops everything: the calibration is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, path: str) -> Path:
        return self.folder / f"{as_file_name(path)}.safetensors"


def digest(words: Iterable[str], tensors: Iterable[Tensor]) -> str:
    """A hash of what determines a calibration: the plan, the dense weights, the images."""
    found = hashlib.sha256()
    for word in words:
        found.update(word.encode())
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
