"""onnx: a graph of standard operators, shift weights as integers behind DequantizeLinear; any runtime takes it."""

import functools
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import Field
from torch.export import ExportedProgram

from reparam.compare.onnx_layers import SCOPES, record_onnx
from reparam.errors import ExportError, first_line
from reparam.exporting.base import Sample, export_format
from reparam.exporting.engine_check import Engine
from reparam.exporting.forms import Dialect
from reparam.exporting.onnx_dialect import FIRST_WITH_INT16, OnnxDialect
from reparam.exporting.openvino_file import OpenVinoModel
from reparam.exporting.program_format import ProgramFormat, ProgramOptions
from reparam.models.onnx_file import open_onnx
from reparam.models.openvino import import_openvino
from reparam.models.preparation import KEY, write_preparation

#: What torch's exporter writes.
_OLDEST, _NEWEST = 18, 23
#: Protocol buffers hold no more in one message.
_LARGEST_FILE = 2**31


class OnnxOptions(ProgramOptions):
    """Options of the onnx format."""

    opset: int = Field(FIRST_WITH_INT16, description="Version of ONNX's operators.")


@export_format("onnx", place="model.onnx")
class OnnxFormat(ProgramFormat):
    """One `.onnx` file, checked in ONNX Runtime and, where it is installed, in OpenVINO."""

    Options = OnnxOptions
    suffix = ".onnx"

    def want_packages(self) -> None:
        """Wants the exporter's packages and a runtime to check with."""
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ExportError(f'ONNX files need {", ".join(missing)}: pip install "reparam[onnx]"')

    def dialect(self, options: OnnxOptions) -> Dialect:
        """ONNX's operators of the version asked for."""
        if not _OLDEST <= options.opset <= _NEWEST:
            raise ExportError(
                f"opset {options.opset}: torch's exporter writes {_OLDEST} to {_NEWEST}; leave --opset out for "
                f"{FIRST_WITH_INT16}"
            )
        return OnnxDialect(options.opset)

    def save(self, program: ExportedProgram, path: Path, options: OnnxOptions, sample: Sample) -> None:
        """Translates the program, optimised, into one file."""
        try:
            with _quiet():
                made = torch.onnx.export(program, dynamo=True, opset_version=options.opset, verbose=False)
        except Exception as error:  # whatever translating an operation raises
            # Around the cause torch says only which step it was.
            reason = first_line(error.__cause__ or error)
            raise ExportError(f"torch cannot write the model as ONNX: {reason}") from error
        assert made is not None
        for node in made.model.graph.all_nodes():
            for key in node.metadata_props.keys() - {SCOPES}:  # lines of the source, with paths on this machine
                del node.metadata_props[key]
        made.model.metadata_props[KEY] = write_preparation(sample.preparation)
        size = sum(value.const_value.nbytes for value in made.model.graph.initializers.values() if value.const_value)
        if size >= _LARGEST_FILE:
            raise ExportError(
                f"{size / 1e9:.1f} GB of weights: one ONNX file holds less than {_LARGEST_FILE / 1e9:.1f}"
            )
        made.save(path)

    def engines(self, path: Path, options: OnnxOptions) -> Iterator[Engine]:
        """ONNX Runtime and OpenVINO."""
        import onnxruntime

        file = open_onnx(path)
        yield Engine(
            name=f"ONNX Runtime {onnxruntime.__version__}", file=file, record=functools.partial(record_onnx, file)
        )
        yield _openvino(path)


def _openvino(path: Path) -> Engine:
    if importlib.util.find_spec("openvino") is None:
        return Engine(name="OpenVINO", missing_because='it is not installed: pip install "reparam[bench]"')
    version = import_openvino().__version__.partition("-")[0]
    return Engine(name=f"OpenVINO {version}", file=OpenVinoModel(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on itself: uses of what torch deprecates, versions that it converts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
