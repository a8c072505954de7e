"""An ONNX file in OpenVINO, in float32 on the CPU: a second engine to check with."""

from pathlib import Path

import torch
from torch import Tensor

from reparam.errors import ModelError, first_line
from reparam.models.model_file import ModelFile
from reparam.models.openvino import import_openvino


class OpenVinoModel(ModelFile):
    """The graph of a file."""

    def __init__(self, path: Path) -> None:
        openvino = import_openvino()
        try:
            graph = openvino.Core().read_model(str(path))
            compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load the file: {first_line(error)}") from error
        sides = [side.get_length() if side.is_static else "any" for side in graph.inputs[0].partial_shape]
        super().__init__(where=str(path), sides=sides)
        self._request = compiled.create_infer_request()

    def run(self, images: Tensor) -> Tensor | None:
        """As `ModelFile.run`."""
        try:
            found = self._request.infer([images.contiguous().numpy()])
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run the file: {first_line(error)}") from error
        return torch.tensor(found[0])
