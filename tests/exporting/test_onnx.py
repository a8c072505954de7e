"""The onnx format: standard operators, shift weights and grids exact, checked in two engines, whole or not at all."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reparam.errors import CheckpointError, ExportError, OptionError
from reparam.exporting.base import Exported, parse_export_options
from reparam.exporting.onnx import OnnxFormat
from reparam.exporting.onnx_dialect import OnnxDialect
from reparam.models.onnx_file import open_onnx
from tests.exporting.models import PREPARATION, SAMPLE, converted_cnn, converted_mlp, converted_vit, shift_layers
from tests.pico import LINEAR, convert, images, recipe

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def export(model: nn.Module, out: Path, **options: Any) -> Exported:
    chosen = parse_export_options(OnnxFormat, options)
    return OnnxFormat().write(model, out, chosen, extra={}, sample=SAMPLE)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return converted_vit()


@pytest.fixture(scope="module")
def file(vit: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    out = tmp_path_factory.mktemp("onnx") / "vit.onnx"
    return out, export(vit, out)


def constants(path: Path, kind: str) -> list[tuple[np.ndarray[Any, Any], ...]]:
    """The constant operands of every node of a kind, in float64, but for those that are computed."""
    graph = onnx.load(path).graph
    known = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    nodes = [[known[name] for name in node.input if name in known] for node in graph.node if node.op_type == kind]
    return [tuple(found) for found in nodes]


def test_the_files_logits_are_the_models_for_batches_of_any_size(vit: nn.Module, file: tuple[Path, Exported]) -> None:
    model = open_onnx(file[0])
    assert model.batch_size is None
    for batch in (1, 5):
        with torch.no_grad():
            assert torch.allclose(model(images(batch, seed=7)), vit(images(batch, seed=7)), atol=1e-4)


def test_float_inputs_of_int8_weights_are_not_rounded(tmp_path: Path) -> None:
    """ONNX Runtime would do so by default, for a per cent of the logits."""
    torch.manual_seed(0)
    narrow = {**LINEAR, "options": {"bits": 4}}
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    model = convert(layers, recipe([narrow])).eval()
    export(model, tmp_path / "m.onnx")
    with torch.no_grad():
        torch.testing.assert_close(open_onnx(tmp_path / "m.onnx")(images(4)), model(images(4)))


def test_only_standard_operators_are_used(file: tuple[Path, Exported]) -> None:
    model = onnx.load(file[0])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert not model.functions


def test_every_shift_weight_is_in_the_file_as_integers_exact_to_the_bit(
    vit: nn.Module, file: tuple[Path, Exported]
) -> None:
    held = [found for found in constants(file[0], "DequantizeLinear") if found[0].ndim == 2]
    assert {codes.dtype for codes, _ in held} == {np.dtype(np.int8), np.dtype(np.int16)}
    dequantized = [torch.from_numpy(codes.astype(np.float32) * scale).T for codes, scale in held]
    layers = shift_layers(vit)
    assert len(dequantized) == len(layers) == 8
    for path, layer in layers.items():
        assert any(torch.equal(weight, layer.weight) for weight in dequantized), path


def test_fixed_point_inputs_are_quantised_with_the_grids_step(vit: nn.Module, file: tuple[Path, Exported]) -> None:
    grids = [layer.activation for layer in shift_layers(vit).values() if layer.options.activation_bits]
    wanted = sorted(grid.step().item() for grid in grids)  # type: ignore[operator]
    found = constants(file[0], "QuantizeLinear")
    assert sorted(step.item() for step, _ in found) == wanted
    assert {zero.dtype for _, zero in found} == {np.dtype(np.int8)}


def test_what_was_written_is_told(file: tuple[Path, Exported]) -> None:
    out, exported = file
    assert exported.file_bytes == out.stat().st_size
    assert {(part.form, part.tensors) for part in exported.parts} == {("int8", 4), ("int16", 4)}
    assert all(part.before == {"int8": 4, "int16": 2}[part.form] * part.after for part in exported.parts)
    assert exported.notes == ()
    runtime, openvino = exported.checks
    assert runtime.engine.startswith("ONNX Runtime ")
    assert openvino.engine.startswith("OpenVINO")
    assert (runtime.images, runtime.data, runtime.top1_agreement) == (9, "drawn", 100.0)
    assert openvino.skipped is not None or openvino.top1_agreement == 100.0


def test_nodes_note_their_modules_and_nothing_about_this_machine(file: tuple[Path, Exported]) -> None:
    notes = {entry.key for node in onnx.load(file[0]).graph.node for entry in node.metadata_props}
    assert notes == {"pkg.torch.onnx.name_scopes"}
    assert b".py" not in file[0].read_bytes()


def test_how_images_are_prepared_is_noted(file: tuple[Path, Exported]) -> None:
    (note,) = [entry.value for entry in onnx.load(file[0]).metadata_props if entry.key == "reparam.images"]
    assert json.loads(note) == PREPARATION
    assert open_onnx(file[0]).preparation == PREPARATION


def test_adders_and_floors_are_written_out_and_exact_for_one_batch_size(tmp_path: Path) -> None:
    cnn = converted_cnn()
    exported = export(cnn, tmp_path / "cnn.onnx", dynamic_batch=False, batch_size=4)
    model = open_onnx(tmp_path / "cnn.onnx")
    assert model.batch_size == 4
    with torch.no_grad():
        assert torch.allclose(model(images(6)), cnn(images(6)), atol=1e-4)
    kinds = {node.op_type for node in onnx.load(tmp_path / "cnn.onnx").graph.node}
    assert {"Floor", "DequantizeLinear", "Abs"} <= kinds
    assert "QuantizeLinear" not in kinds
    assert all(check.skipped or check.top1_agreement == 100.0 for check in exported.checks)


def test_an_opset_without_16_bits_leaves_wide_weights_in_float_and_says_so(tmp_path: Path) -> None:
    exported = export(converted_mlp(), tmp_path / "m.onnx", opset=20)
    assert [(part.form, part.tensors) for part in exported.parts] == [("float32", 2)]
    assert exported.notes == (
        "weights that need more than 8 bits, exact in float32: 1, 3. From opset 21 on they take 16 bits",
    )


@pytest.mark.parametrize("opset", [17, 24])
def test_opsets_that_cannot_be_written_are_refused_with_the_range(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset {opset}: .* writes 18 to 23; leave --opset out for 21"):
        export(converted_mlp(), tmp_path / "m.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_disagrees_is_not_left_behind_and_the_layer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"an older one")
    right = OnnxDialect.dequantized
    monkeypatch.setattr(
        OnnxDialect, "dequantized", lambda self, codes, scale, *, axis: right(self, codes, 2 * scale, axis=axis)
    )
    with pytest.raises(ExportError, match=r"in ONNX Runtime .* gives other outputs .*, first in 1; .* Nothing was"):
        export(converted_mlp(), tmp_path / "m.onnx")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an older one"]


def test_missing_packages_are_told_with_the_line_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = converted_mlp()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r'need onnx, onnxscript, onnxruntime: pip install "reparam\[onnx\]"'):
        export(model, tmp_path / "m.onnx")


def test_an_engine_that_is_not_here_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else found(name))
    runtime, openvino = export(converted_mlp(), tmp_path / "m.onnx").checks
    assert (runtime.skipped, runtime.top1_agreement) == (None, 100.0)
    assert (openvino.engine, openvino.top1_agreement) == ("OpenVINO", None)
    assert openvino.skipped == 'it is not installed: pip install "reparam[bench]"'


def test_a_place_that_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"wanted a name that ends with .onnx"):
        OnnxFormat().refuse_place(tmp_path / "model")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(CheckpointError, match="got a folder"):
        OnnxFormat().refuse_place(tmp_path / "folder.onnx")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 4}, "^format onnx: a file that takes any batch has no batch size; add dynamic_batch = false"),
        ({"dynamic_batch": False, "batch_size": 0}, "greater than or equal to 1"),
        ({"tolerance": -1}, "greater than or equal to 0"),
        ({"compile": True}, 'format onnx has no option "compile"'),
        ({"opsett": 21}, 'Did you mean "opset"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_out_of_range_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        parse_export_options(OnnxFormat, options)


@pytest.mark.parametrize("spoil", ["train", "half"])
def test_a_model_in_training_or_in_half_precision_is_refused(tmp_path: Path, spoil: str) -> None:
    model = getattr(converted_cnn(), spoil)()
    with pytest.raises(ExportError, match=r"training mode|got float16 on cpu"):
        export(model, tmp_path / "m.onnx")
