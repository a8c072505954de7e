from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.api.convert import convert
from reparam.api.lower import lower
from reparam.api.verify import verify
from reparam.errors import CheckpointError, ModelError, OptionError
from reparam.models.build import build_model, build_spec
from reparam.recipe.data_settings import DataSettings
from tests.api.staged import MODEL, SHAPE
from tests.compare.exported import write_pt2
from tests.models.onnx_bytes import write_classifier


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("runs") / "deepshift-q"
    convert(MODEL, "deepshift-q", weights="none", out=out, **SHAPE)
    return out


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(build_spec(MODEL, **SHAPE)).eval()


def fixed(tmp_path: Path, model: nn.Module, *, batch: int) -> Path:
    return write_pt2(tmp_path / "m.pt2", torch.export.export(model, (torch.zeros(batch, 1, 8, 8),)))


def test_a_run_equals_itself_bit_for_bit(run: Path) -> None:
    made = verify(run, run, tolerance=0.0)
    assert (made.agree, made.first, made.top1_agreement, made.images) == (True, None, 100.0, 16)
    assert made.data == "random, of seed 0"


def test_the_first_converted_layer_is_where_a_run_parts_from_its_original(run: Path) -> None:
    made = verify(run / "dense", run)
    assert made.first is not None
    assert made.before is not None
    assert (made.agree, made.first.path, made.before.path) == (False, "blocks.0.attn.qkv", "blocks.0.norm1")
    assert made.before.relative_error == 0.0
    assert made.first.relative_error is not None
    assert made.first.relative_error > 0.05


def test_a_module_with_one_changed_layer_is_found_out(model: nn.Module) -> None:
    changed = deepcopy(model)
    with torch.no_grad():
        changed.get_submodule("blocks.0.mlp.fc2").bias.add_(1.0)  # type: ignore[operator, union-attr]
    made = verify(model, changed)
    assert made.first is not None
    assert (made.first.path, made.first.max_abs_error) == ("blocks.0.mlp.fc2", pytest.approx(1.0, rel=1e-5))


def test_converted_models_know_their_images_and_may_be_compared_with_their_lowered_forms() -> None:
    torch.manual_seed(0)
    model = convert(MODEL, "shift-ptq", weights="none", **SHAPE).model.eval()
    assert verify(model, deepcopy(model), tolerance=0.0).agree
    assert verify(model, lower(model, "float32").model, tolerance=1e-5).agree


def test_images_are_those_of_the_evaluation_split_prepared_for_the_model(
    run: Path, images: Path, data: DataSettings
) -> None:
    seen: list[Tensor] = []
    answer = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    answer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    made = verify(run, answer, data=data, images=6)
    assert made.data == str(images / "validation")
    brightness = torch.cat(seen).mean((1, 2, 3)).tolist()
    assert len(brightness) == made.images == 6
    for pair, around in zip((brightness[:2], brightness[2:4], brightness[4:]), (-0.7, 0.0, 0.65), strict=True):
        assert pair == pytest.approx([around] * 2, abs=0.1)  # dark, grey and light: spread over the classes


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_file_made_for_one_batch_size_gets_batches_of_that_size(tmp_path: Path, model: nn.Module, batch: int) -> None:
    made = verify(model, fixed(tmp_path, model, batch=batch), images=5, img_size=8)
    assert made.agree
    assert {"patch_embed", "blocks.0.attn", "head"} <= {layer.path for layer in made.layers}
    assert not made.uncompared


def test_a_file_without_modules_is_compared_by_its_outputs(tmp_path: Path) -> None:
    linear = nn.Linear(64, 3)
    made = verify(
        nn.Sequential(nn.Flatten(), linear).eval(), write_classifier(tmp_path / "m.onnx", linear, shape=("n", 1, 8, 8))
    )
    assert (made.agree, made.layers, made.first) == (True, (), None)


def test_models_of_other_images_or_outputs_are_told(tmp_path: Path, run: Path, model: nn.Module) -> None:
    smaller = write_classifier(tmp_path / "m.onnx", nn.Linear(16, 3), shape=("n", 1, 4, 4))
    with pytest.raises(ModelError, match=r"takes images of 1x8x8 and .*m.onnx of 1x4x4; both must take the same"):
        verify(run, smaller)
    fewer = write_classifier(tmp_path / "n.onnx", nn.Linear(64, 2), shape=("n", 1, 8, 8))
    with pytest.raises(ModelError, match=r"outputs of other shapes cannot be compared: .* \(4, 3\), .* \(4, 2\)"):
        verify(run, fewer)


def test_a_module_that_is_in_training_or_says_no_size_is_told(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="in training mode"):
        verify(model, deepcopy(model).train())
    with pytest.raises(ModelError, match="neither Flatten nor Flatten says the size of its images; give --img-size"):
        verify(nn.Flatten().eval(), nn.Flatten().eval())


@pytest.mark.parametrize(
    ("changed", "error", "reason"),
    [
        pytest.param({"images": 0}, OptionError, "at least 1 image", id="no image"),
        pytest.param({"tolerance": -1.0}, OptionError, "tolerance of at least 0", id="negative tolerance"),
        pytest.param({"tolerance": float("nan")}, OptionError, "tolerance of at least 0", id="no number"),
        pytest.param({"num_classes": 3}, ModelError, "num_classes shapes a model when it is made", id="a shape"),
        pytest.param({"weights": "none"}, ModelError, "weights shapes a model when it is made", id="weights"),
        pytest.param({"b": "nowhere.pt2"}, ModelError, "nowhere.pt2: no such file", id="no file"),
        pytest.param({"b": "runs/nowhere"}, ModelError, "no such file or folder", id="no run"),
    ],
)
def test_bad_input_is_one_sentence(run: Path, changed: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        verify(run, **({"b": run} | changed))


def test_a_damaged_run_is_told(tmp_path: Path, run: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        verify(run, tmp_path)
