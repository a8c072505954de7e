"""An ONNX file as a model: onnxruntime runs it on the CPU, and its first output is taken as the logits."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reparam.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


class OnnxModel(nn.Module):
    """The graph of a file; `image` is the (channels, height, width) that it takes, None where it takes any.

    A graph that was made for one batch size gets batches of that size, the last one filled up with blank images.
    """

    def __init__(self, session: "InferenceSession", *, where: str) -> None:
        super().__init__()
        name, shape, dtype = _input_of(session, where=where)
        self.image = shape[1:]
        self._session, self._where = session, where
        self._input, self._batch_size, self._dtype = name, shape[0], dtype

    def image_size(self, *, img_size: int | None, in_chans: int | None) -> tuple[int, int, int]:
        """Returns the (channels, height, width) to feed: the graph's own, and what was given where it has none.

        Raises:
            ModelError: a side that neither tells, or that they tell differently.
        """
        given = (("--in-chans", in_chans), ("--img-size", img_size), ("--img-size", img_size))
        channels, height, width = (
            _side(own, flag, wanted, where=self._where) for own, (flag, wanted) in zip(self.image, given, strict=True)
        )
        return channels, height, width

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (B, K), float32, of images (B, C, H, W).

        Raises:
            ModelError: the graph does not take these images, or does not answer with one row for each.
        """
        fed = images.split(self._batch_size or len(images))
        return torch.cat([self._run(part) for part in fed]).to(images.device)

    def _run(self, images: Tensor) -> Tensor:
        blank = (self._batch_size or 0) - len(images)
        filled = torch.cat([images, images.new_zeros(blank, *images.shape[1:])]) if blank > 0 else images
        pixels = filled.to("cpu", self._dtype).contiguous().numpy()
        try:
            found = self._session.run(None, {self._input: pixels})[0]
        except _onnxruntime_errors() as error:
            raise ModelError(f"{self._where}: onnxruntime cannot run it: {_reason(error)}") from error
        if getattr(found, "ndim", 0) < 1 or len(found) != len(pixels):
            got = getattr(found, "shape", type(found).__name__)
            raise ModelError(
                f"{self._where}: wanted logits (batch, classes) as its first output, got {got} for "
                f"{len(pixels)} images; export it with its batch dimension dynamic, or for a fixed batch size"
            )
        return torch.from_numpy(found)[: len(images)].float()


def open_onnx(path: str | Path) -> OnnxModel:
    """Opens a file for the CPU, with as many threads as torch has.

    Raises:
        ModelError: onnxruntime is not installed, the file is none of ONNX, or it does not take one batch of images.
    """
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file")
    try:
        import onnxruntime  # the optional "onnx" extra
    except ImportError as error:
        raise ModelError(
            'ONNX files are run by onnxruntime, which is not installed: pip install "reparam[onnx]"'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; they are raised too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _onnxruntime_errors() as error:
        raise ModelError(
            f"{path}: onnxruntime cannot load it as an ONNX model: {_reason(error)}. Export it again."
        ) from error
    return OnnxModel(session, where=str(path))


def _side(own: int | None, flag: str, given: int | None, *, where: str) -> int:
    side = own or given
    if side is None:
        raise ModelError(f"{where}: does not say the size of its images; give it with {flag}")
    if given not in (None, side):
        raise ModelError(f"{where}: {flag} {given} does not fit, the file was made for {side}; leave {flag} out")
    return side


def _input_of(session: "InferenceSession", *, where: str) -> tuple[str, tuple[int | None, ...], torch.dtype]:
    """The name, shape (None where any number will do) and type of the one input."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs)
        raise ModelError(f"{where}: wanted a model with one input, a batch of images; it has {len(inputs)} ({names})")
    entry = inputs[0]
    shape = tuple(side if isinstance(side, int) and side > 0 else None for side in entry.shape)
    if len(shape) != 4 or shape[1] not in (None, 1, 3, 4):
        raise ModelError(
            f"{where}: wanted an input (batch, channels, height, width) with 1, 3 or 4 channels, got {entry.shape}; "
            "export it in this layout"
        )
    if entry.type not in _DTYPES:
        raise ModelError(f"{where}: wanted an input of {', '.join(_DTYPES)}, got {entry.type}; export it with one")
    return entry.name, shape, _DTYPES[entry.type]


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """What a session raises; its errors have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    found: Any = tuple(getattr(state, name) for name in names)
    return tuple(found)


def _reason(error: Exception) -> str:
    """One line of an error, without the code and the file's name that onnxruntime puts before it."""
    return " ".join(str(error).split()).rpartition(" : ")[2].rpartition(" failed:")[2].rstrip(".")
