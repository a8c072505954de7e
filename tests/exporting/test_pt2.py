"""The pt2 format: a program that torch reads without reparam, its weights as integers; with compile, code beside it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reparam.errors import CheckpointError, ExportError
from reparam.exporting.base import Exported, parse_export_options
from reparam.exporting.pt2 import Pt2Format
from reparam.models.pt2_file import open_pt2
from tests.exporting.models import PREPARATION, SAMPLE, converted_cnn, converted_mlp, converted_vit, shift_layers
from tests.pico import images


def unpacked(file: Path) -> list[Path]:
    folder = file.with_suffix("")
    shutil.unpack_archive(file, folder, "zip")
    return [path for path in folder.rglob("*") if path.is_file()]


def export(model: nn.Module, out: Path, **options: Any) -> Exported:
    return Pt2Format().write(model, out, parse_export_options(Pt2Format, options), extra={}, sample=SAMPLE)


@pytest.mark.parametrize("make", [converted_vit, converted_cnn, converted_mlp])
def test_the_file_gives_the_models_logits_for_batches_of_any_size(tmp_path: Path, make: Any) -> None:
    model = make()
    exported = export(model, tmp_path / "m.pt2")
    file = open_pt2(tmp_path / "m.pt2")
    assert file.batch_size is None
    for batch in (1, 5):
        with torch.no_grad():
            assert torch.allclose(file(images(batch, seed=7)), model(images(batch, seed=7)), atol=1e-4)
    (check,) = exported.checks
    assert check.engine.startswith("torch.export ")
    assert (check.images, check.data, check.top1_agreement) == (9, "drawn", 100.0)
    assert file.preparation == PREPARATION


def test_every_shift_weight_is_held_as_integers_exact_to_the_bit(tmp_path: Path) -> None:
    model = converted_vit()
    exported = export(model, tmp_path / "m.pt2")
    state = torch.export.load(tmp_path / "m.pt2").state_dict
    layers = shift_layers(model)
    for path, layer in layers.items():
        codes, scale = state[f"{path}.codes"], state[f"{path}.scale"]
        assert not codes.is_floating_point()
        assert torch.equal((codes.float() * scale).T, layer.weight)
    assert sum(part.tensors for part in exported.parts) == len(layers)
    assert b".py" not in b"".join(entry.read_bytes() for entry in unpacked(tmp_path / "m.pt2"))


def test_a_file_for_one_batch_size_takes_that_size(tmp_path: Path) -> None:
    model = converted_mlp()
    export(model, tmp_path / "m.pt2", dynamic_batch=False, batch_size=4)
    file = open_pt2(tmp_path / "m.pt2")
    assert file.batch_size == 4
    with torch.no_grad():
        assert torch.allclose(file(images(6)), model(images(6)), atol=1e-5)


@pytest.mark.slow
def test_compiled_code_is_checked_too_and_lies_beside_the_program(tmp_path: Path) -> None:
    model = converted_mlp()
    exported = export(model, tmp_path / "m.pt2", compile=True)
    program, code = exported.checks
    assert (program.top1_agreement, code.top1_agreement) == (100.0, 100.0)
    assert code.engine.startswith("AOTInductor ")
    assert open_pt2(tmp_path / "m.pt2")(images(3)).shape == (3, 3)


def test_without_a_compiler_there_is_no_code_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ExportError, match=r"needs a C\+\+ compiler, .* leave --compile out"):
        export(converted_mlp(), tmp_path / "m.pt2", compile=True)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"wanted a name that ends with \.pt2"):
        Pt2Format().refuse_place(tmp_path / "m.onnx")
