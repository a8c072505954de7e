"""A dense model with one batch, as the engines get it, and the forms of it that several of them want, made once."""

import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


class Workload:
    """A model in eval mode, on the device of a batch (B, ...), and the number of threads that an engine may use.

    A context manager: on leaving, temporary files are removed and what engines asked for with `on_leaving` is done.
    """

    def __init__(self, model: nn.Module, batch: Tensor, *, threads: int) -> None:
        self.model, self.batch, self.threads = model, batch, threads
        self._exported: ExportedProgram | Exception | None = None
        self._onnx_file: Path | Exception | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def on_leaving(self, act: Callable[[], object]) -> None:
        """Does something when the measurement is over."""
        self._stack.callback(act)

    def beside(self, model: nn.Module, *, onnx_file: Path | None = None) -> "Workload":
        """Another model in eval mode on the same batch, and its ONNX file if there is one; closed with this one."""
        other = self._stack.enter_context(Workload(model, self.batch, threads=self.threads))
        other._onnx_file = onnx_file
        return other

    def folder(self) -> Path:
        """A new temporary folder."""
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="reparam-")))

    def exported(self) -> ExportedProgram:
        """The model as `torch.export` sees it on this batch; a failure is raised again for each engine that asks."""
        if self._exported is None:
            try:
                with torch.no_grad():
                    self._exported = torch.export.export(self.model, (self.batch,))
            except Exception as error:
                self._exported = error
        if isinstance(self._exported, Exception):
            raise self._exported
        return self._exported

    def onnx_file(self) -> Path:
        """The model as an ONNX file for this batch size; a failure is raised again for each engine that asks."""
        if self._onnx_file is None:
            try:
                self._onnx_file = self._write_onnx(self.folder() / "model.onnx")
            except Exception as error:
                self._onnx_file = error
        if isinstance(self._onnx_file, Exception):
            raise self._onnx_file
        return self._onnx_file

    def _write_onnx(self, path: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own use of what torch deprecates
            program = torch.onnx.export(self.exported(), dynamo=True, verbose=False)
        assert program is not None
        program.save(path)
        return path
