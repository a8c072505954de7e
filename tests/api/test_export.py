"""`reparam.export` on a run: where it writes, what it compares with, and what it leaves alone."""

from pathlib import Path

import pytest
import torch

import reparam
from reparam.errors import CheckpointError, ExportError, OptionError
from reparam.models.build import build_model, build_spec
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from reparam.recipe.data_settings import DataSettings
from reparam.train.digits import write_digits


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    spec = build_spec("vit_tiny_patch16_224", num_classes=3, img_size=16, model_kwargs=sizes)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    reparam.convert(build_model(spec), "deepshift-q", out=folder)
    return folder


def test_a_run_is_packed_into_a_folder_of_its_own_beside_its_original(run: Path) -> None:
    exported = reparam.export(run, "packed")
    assert exported.out == str(run / "packed")
    assert exported.source_bytes == (run / "model.safetensors").stat().st_size
    assert exported.dense_bytes == (run / "dense" / "model.safetensors").stat().st_size
    assert sorted(path.name for path in (run / "packed").iterdir()) == ["config.json", "model.safetensors"]


def test_a_packed_folder_is_a_model_like_any_other(run: Path) -> None:
    reparam.export(run, "packed")
    profile = reparam.profile(run / "packed", measure=False)
    assert profile.file_bytes == (run / "packed" / "model.safetensors").stat().st_size
    assert profile.dense is not None
    assert profile.operations == reparam.profile(run, measure=False).operations


def test_a_packed_folder_is_not_trained(run: Path, images: Path) -> None:
    reparam.export(run, "packed")
    with pytest.raises(CheckpointError, match="is packed, so what was trained is gone; train the run"):
        reparam.finetune(run / "packed", data=reparam.DataSettings(data_dir=str(images)))


def test_a_module_is_exported_where_it_is_told(run: Path, tmp_path: Path) -> None:
    model = reparam.load(run)
    exported = reparam.export(model, "packed", out=tmp_path / "out")
    assert (exported.source_bytes, exported.dense_bytes) == (None, None)
    with pytest.raises(ExportError, match="nothing says where to write this VisionTransformer; pass out="):
        reparam.export(model, "packed")


def test_the_run_itself_is_never_replaced(run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(ExportError, match="is what is exported, and would be replaced"):
        reparam.export(run, "packed", out=run)
    with pytest.raises(CheckpointError, match="holds a model that is not packed"):
        reparam.export(run, "packed", out=run / "dense")
    assert (run / "model.safetensors").read_bytes() == before


def test_the_original_of_a_run_has_nothing_to_pack(run: Path) -> None:
    with pytest.raises(ExportError, match="the model is not converted"):
        reparam.export(run / "dense", "packed")
    assert not (run / "dense" / "packed").exists()


def test_options_are_read_before_the_model(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match='format packed has no option "opset"'):
        reparam.export(tmp_path / "absent", "packed", opset=17)


@pytest.mark.parametrize("format", ["packed", "onnx", "pt2"])
def test_a_folder_that_is_not_there_is_told_and_not_made(format: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        reparam.export(tmp_path / "absent", format)
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_run_as_a_program_has_the_accuracy_of_the_run_on_digits(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_digits(tmp_path / "digits")
    data = DataSettings(data_dir=str(tmp_path / "digits"))
    digits_vit = Path(reparam.__file__).parent / "_demo" / "digits_vit"
    reparam.convert(f"local-dir:{digits_vit}", "shift-ptq", out=tmp_path / "run")
    exported = reparam.export(tmp_path / "run", suffix, data=data, images=20)
    assert exported.out == str(tmp_path / "run" / f"model.{suffix}")
    assert exported.file_bytes < 0.8 * (tmp_path / "run" / "model.safetensors").stat().st_size
    assert exported.checks[0].data == str(tmp_path / "digits" / "validation")
    assert exported.checks[0].top1_agreement == 100.0
    of_file, of_run = (reparam.evaluate(one, data=data, workers=0) for one in (exported.out, tmp_path / "run"))
    assert of_file.top1 == of_run.top1
    assert of_file.loss == pytest.approx(of_run.loss, rel=1e-4)


def test_a_format_that_runs_nothing_takes_no_images(run: Path) -> None:
    with pytest.raises(OptionError, match="format packed is not checked on images; leave them out"):
        reparam.export(run, "packed", images=8)


@pytest.mark.parametrize("count", [0, -1])
def test_a_file_is_checked_on_one_image_at_least(run: Path, count: int) -> None:
    with pytest.raises(OptionError, match=f"images {count}: wanted 1 or more"):
        reparam.export(run, "pt2", images=count)


def test_a_module_that_nothing_is_known_of_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing says which images this Flatten takes"):
        reparam.export(torch.nn.Flatten().eval(), "pt2", out=tmp_path / "m.pt2")


@pytest.mark.parametrize("format", ["packed", "onnx", "pt2"])
def test_a_lowered_model_is_not_exported(format: str, tmp_path: Path) -> None:
    model = reparam.lower(torch.nn.Sequential(ShiftLinear(torch.randn(4, 4), None, ShiftOptions())), "int8").model
    with pytest.raises(ExportError, match=r"lowered for inference \(0 is\); export the converted model"):
        reparam.export(model, format, out=tmp_path / f"model.{format}")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_told_with_the_closest_name(run: Path) -> None:
    with pytest.raises(ExportError, match='Did you mean "onnx"'):
        reparam.export(run, "onxx")
