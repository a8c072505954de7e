"""A ViT of two blocks as files, and converted, for the tests that read them."""

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from tests.pico import images


def program_of(model: nn.Module, *, batch: int | None = None) -> ExportedProgram:
    """Exports for any batch size, or for one."""
    with torch.no_grad():
        return torch.export.export(model, (images(batch or 2),), dynamic_shapes=None if batch else ({0: Dim.DYNAMIC},))


def write_onnx(path: Path, program: ExportedProgram) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of what torch deprecates
        written = torch.onnx.export(program, dynamo=True, verbose=False)
    assert written is not None
    written.save(path)
    return path


def write_pt2(path: Path, program: ExportedProgram) -> Path:
    torch.export.save(program, path)
    return path
