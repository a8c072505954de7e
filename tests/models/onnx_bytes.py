"""Writes tiny ONNX files byte by byte, so that the tests need neither an exporter nor the onnx package.

Field numbers are those of onnx.proto; a message is its fields, each a key (number << 3 | wire type) and a value.
"""

from pathlib import Path

import numpy as np
from torch import Tensor, nn

FLOAT = 1


def write_classifier(path: Path, linear: nn.Linear, *, shape: tuple[int | str, ...], pools: bool = False) -> Path:
    """Writes a linear layer on all pixels or, with `pools`, on their mean; a word in `shape` is a free side."""
    before = [_node("GlobalAveragePool", ["images"], ["pooled"])] if pools else []
    nodes = [
        *before,
        _node("Flatten", ["pooled" if pools else "images"], ["flat"]),
        _node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
    ]
    weights = [tensor("weight", linear.weight), tensor("bias", linear.bias)]
    return write_model(
        path, nodes, weights, inputs=[value("images", shape)], outputs=[value("logits", (shape[0], "k"))]
    )


def write_model(
    path: Path, nodes: list[bytes], weights: list[bytes], *, inputs: list[bytes], outputs: list[bytes]
) -> Path:
    graph = b"".join(
        [
            *(_field(1, node) for node in nodes),
            _field(2, b"graph"),
            *(_field(5, weight) for weight in weights),
            *(_field(11, entry) for entry in inputs),
            *(_field(12, entry) for entry in outputs),
        ]
    )
    opset = _field(1, b"") + _field(2, 13)
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, opset))
    return path


def value(name: str, shape: tuple[int | str, ...], dtype: int = FLOAT) -> bytes:
    """A ValueInfoProto."""
    sides = [_field(1, side) if isinstance(side, int) else _field(2, side.encode()) for side in shape]
    tensor = _field(1, dtype) + _field(2, b"".join(_field(1, side) for side in sides))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _node(kind: str, inputs: list[str], outputs: list[str], **integers: int) -> bytes:
    attributes = [_field(1, name.encode()) + _field(3, n) + _field(20, 2) for name, n in integers.items()]
    return b"".join(
        [
            *(_field(1, name.encode()) for name in inputs),
            *(_field(2, name.encode()) for name in outputs),
            _field(4, kind.encode()),
            *(_field(5, attribute) for attribute in attributes),
        ]
    )


def tensor(name: str, weight: Tensor) -> bytes:
    """A TensorProto."""
    values = weight.detach().numpy().astype("<f4")
    sides = b"".join(_field(1, side) for side in np.shape(values))
    return sides + _field(2, FLOAT) + _field(8, name.encode()) + _field(9, values.tobytes())


def _field(number: int, content: int | bytes) -> bytes:
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(n: int) -> bytes:
    low, rest = n & 0x7F, n >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
