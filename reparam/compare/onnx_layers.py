"""Layers of an ONNX file: values inside its graph become outputs, for nodes that say which module they came from.

torch's exporter writes the paths of the modules around a node into its metadata. Nodes of other exporters have none,
and then only the outputs of the file can be compared.
"""

import ast
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reparam.compare.recording import Recorder, Recording
from reparam.compare.scopes import ScopedNode, module_outputs
from reparam.models.onnx_file import OnnxModel, open_onnx

if TYPE_CHECKING:
    from onnx import NodeProto

#: The key under which torch's exporter notes the modules around a node.
SCOPES = "pkg.torch.onnx.name_scopes"


def record_onnx(model: OnnxModel) -> Recorder:
    """Returns a recorder of a file; its logits are those of the file as it is, layers those of a copy that shows them.

    Without the onnx package there are no layers.
    """
    try:
        import onnx  # the optional "onnx" extra
    except ImportError:
        return lambda images: Recording(logits=model(images))
    proto = onnx.load(model.where)
    names = module_outputs([_scoped(node) for node in proto.graph.node], [entry.name for entry in proto.graph.output])
    shown = {entry.name for entry in proto.graph.output}
    added = dict.fromkeys(name for name in names.values() if name not in shown)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    with tempfile.TemporaryDirectory(prefix="reparam-") as folder:
        path = Path(folder) / "layers.onnx"
        # The weights beside the graph: one file holds no more than 2 GB.
        onnx.save_model(proto, path, save_as_external_data=True)
        inside = open_onnx(path, where=model.where)
    return lambda images: Recording(logits=model(images), layers=_layers(inside, names, images))


def _layers(inside: OnnxModel, names: dict[str, str], images: Tensor) -> dict[str, list[Tensor]]:
    if not names:
        return {}
    values = list(dict.fromkeys(names.values()))
    found = dict(zip(values, inside.outputs(inside.filled(images), values), strict=True))
    tensors = {name: torch.from_numpy(value) for name, value in found.items() if hasattr(value, "ndim")}
    kept = {path: tensors[name] for path, name in names.items() if name in tensors}
    return {path: [inside.rows(t, images)] for path, t in kept.items() if t.is_floating_point() and t.ndim}


def _scoped(node: "NodeProto") -> ScopedNode:
    written = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    paths = ast.literal_eval(written)[1:-1]  # between the model itself and the operation
    return ScopedNode(reads=tuple(node.input), writes=tuple(node.output), scopes=frozenset(paths))
