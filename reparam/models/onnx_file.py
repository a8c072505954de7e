"""An ONNX file as a model: onnxruntime runs it on the CPU, and its first output is taken as the logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam.errors import ModelError
from reparam.models.model_file import ModelFile, refuse_no_file
from reparam.models.preparation import KEY, read_preparation

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


class OnnxModel(ModelFile):
    """The graph of a file."""

    def __init__(self, session: "InferenceSession", *, where: str) -> None:
        entry = _input_of(session, where=where)
        note = session.get_modelmeta().custom_metadata_map.get(KEY)
        super().__init__(where=where, sides=entry.shape, preparation=read_preparation(note))
        if entry.type not in _DTYPES:
            raise ModelError(f"{where}: wanted an input of {', '.join(_DTYPES)}, got {entry.type}; export it with one")
        self._session, self._input, self._dtype = session, entry.name, _DTYPES[entry.type]

    def run(self, images: Tensor) -> Tensor | None:
        """As `ModelFile.run`."""
        found = self.outputs(images)[0]
        return torch.from_numpy(found) if hasattr(found, "ndim") else None

    def outputs(self, images: Tensor, names: Sequence[str] | None = None) -> list[Any]:
        """Returns the outputs of these names, all by default, for images of the batch size it was made for.

        Raises:
            ModelError: the graph does not take these images.
        """
        pixels = images.to(self._dtype).contiguous().numpy()
        try:
            found: list[Any] = self._session.run(names, {self._input: pixels})
        except _onnxruntime_errors() as error:
            raise ModelError(f"{self.where}: onnxruntime cannot run it: {_reason(error)}") from error
        return found


def open_onnx(path: str | Path, *, where: str | None = None) -> OnnxModel:
    """Opens a file for the CPU, with as many threads as torch has.

    Args:
        where: the name for messages; the path by default.
    Raises:
        ModelError: onnxruntime is not installed, the file is none of ONNX, or it does not take one batch of images.
    """
    where = where or str(path)
    refuse_no_file(path, where=where)
    try:
        import onnxruntime  # the optional "onnx" extra
    except ImportError as error:
        raise ModelError(
            'ONNX files are run by onnxruntime, which is not installed: pip install "reparam[onnx]"'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; they are raised too
    # Left to itself it also rounds the float inputs of int8 weights to int8, which the file does not ask for.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _onnxruntime_errors() as error:
        raise ModelError(
            f"{where}: onnxruntime cannot load it as an ONNX model: {_reason(error)}. Export it again."
        ) from error
    return OnnxModel(session, where=where)


def _input_of(session: "InferenceSession", *, where: str) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs)
        raise ModelError(f"{where}: wanted a model with one input, a batch of images; it has {len(inputs)} ({names})")
    return inputs[0]


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """What a session raises; its errors have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    found: Any = tuple(getattr(state, name) for name in names)
    return tuple(found)


def _reason(error: Exception) -> str:
    """One line of an error, without the code and the file's name that onnxruntime puts before it."""
    return " ".join(str(error).split()).rpartition(" : ")[2].rpartition(" failed:")[2].rstrip(".")
