"""Files that a model may be read from, by the suffix of their names."""

from collections.abc import Callable
from pathlib import Path

from reparam.models.model_file import ModelFile
from reparam.models.onnx_file import open_onnx
from reparam.models.pt2_file import open_pt2

_OPENERS: dict[str, Callable[[str], ModelFile]] = {".onnx": open_onnx, ".pt2": open_pt2}


def is_model_file(source: object) -> bool:
    """Whether a source names a file of one of these formats."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in _OPENERS


def open_model_file(source: str | Path) -> ModelFile:
    """Opens a file on the CPU; raises ModelError where it is none of its format, or takes no images."""
    return _OPENERS[Path(source).suffix.lower()](str(source))
