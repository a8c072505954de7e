import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from reparam.api.evaluate import evaluate
from reparam.errors import DataError, ModelError
from reparam.recipe.data_settings import DataSettings
from tests.compare.exported import write_pt2
from tests.models.onnx_bytes import write_classifier

pytest.importorskip("onnxruntime")

HERE: dict[str, Any] = {"workers": 0}


@pytest.fixture(scope="module")
def data(images: Path) -> DataSettings:
    return DataSettings(data_dir=str(images), mean=(0.4,), std=(0.2,), crop_pct=1.0, interpolation="bilinear")


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(64, 3)


@pytest.mark.parametrize("batch", ["n", 4], ids=["any batch size", "a batch size of its own"])
def test_a_file_gets_the_accuracy_and_the_classes_of_its_torch_model(
    tmp_path: Path, images: Path, data: DataSettings, linear: nn.Linear, batch: int | str
) -> None:
    file = write_classifier(tmp_path / "m.onnx", linear, shape=(batch, 1, 8, 8))
    evaluation = evaluate(file, data=data, batch_size=7, per_class=True, **HERE)
    names, counts, loss = ("dark", "grey", "light"), torch.zeros(3, 3, dtype=torch.int64), 0.0
    for label, name in enumerate(names):
        for path in (images / "validation" / name).iterdir():
            logits = linear(((pil_to_tensor(Image.open(path)) / 255 - 0.4) / 0.2).flatten()[None])
            counts[label, logits.argmax()] += 1
            loss -= logits.log_softmax(-1)[0, label].item() / 18
    assert 0 < counts.trace() < 18
    assert evaluation.confusion == tuple(map(tuple, counts.tolist()))
    assert tuple(row.name for row in evaluation.per_class) == names
    assert evaluation.top1 == pytest.approx(100 * counts.trace().item() / 18)
    assert evaluation.loss == pytest.approx(loss, rel=1e-4)
    assert (evaluation.images, evaluation.device) == (18, "cpu")
    assert list(tmp_path.iterdir()) == [file]


def test_a_program_of_torch_export_is_measured_likewise(tmp_path: Path, data: DataSettings, linear: nn.Linear) -> None:
    onnx = write_classifier(tmp_path / "m.onnx", linear, shape=("n", 1, 8, 8))
    model = nn.Sequential(nn.Flatten(), linear).eval()
    pt2 = write_pt2(tmp_path / "m.pt2", torch.export.export(model, (torch.zeros(4, 1, 8, 8),)))
    found, wanted = (evaluate(file, data=data, batch_size=7, per_class=True, **HERE) for file in (pt2, onnx))
    assert found.confusion == wanted.confusion
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)


def test_a_file_that_takes_any_size_is_fed_the_given_one(tmp_path: Path, data: DataSettings) -> None:
    file = write_classifier(tmp_path / "m.onnx", nn.Linear(1, 3), shape=("n", 1, "h", "w"), pools=True)
    assert evaluate(file, data=data, img_size=16, **HERE).images == 18
    with pytest.raises(ModelError, match=r"m.onnx: .* give it with --img-size"):
        evaluate(file, data=data, **HERE)


def test_figures_that_only_timm_gives_are_told_and_those_that_are_given_are_not(
    tmp_path: Path, images: Path, data: DataSettings, linear: nn.Linear, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_classifier(tmp_path / "m.onnx", linear, shape=("n", 1, 8, 8))
    with caplog.at_level(logging.INFO, logger="reparam"):
        evaluate(file, data=data, **HERE)
        assert caplog.messages == []
        evaluate(file, data=DataSettings(data_dir=str(images), std=(0.5,)), **HERE)
    assert caplog.messages == [
        f"{file} does not say how images are prepared; timm's defaults: mean 0.449, crop_pct 0.875, "
        "interpolation bicubic"
    ]


def test_outputs_that_are_not_the_classes_are_told_with_both_numbers(tmp_path: Path, data: DataSettings) -> None:
    file = write_classifier(tmp_path / "m.onnx", nn.Linear(64, 5), shape=("n", 1, 8, 8))
    with pytest.raises(DataError, match=r"3 classes \(dark, grey, light\), but the model has 5 outputs"):
        evaluate(file, data=data, **HERE)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"num_classes": 3}, "num_classes shapes a model when it is made"),
        ({"weights": "none"}, "weights shapes a model when it is made"),
        ({"device": "cuda"}, "run on the CPU; leave --device cuda out"),
        ({"img_size": 9}, "made for 8; leave --img-size out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_apply_to_a_file_is_refused(
    tmp_path: Path, data: DataSettings, linear: nn.Linear, option: dict[str, Any], reason: str
) -> None:
    file = write_classifier(tmp_path / "m.onnx", linear, shape=("n", 1, 8, 8))
    with pytest.raises(ModelError, match=reason):
        evaluate(file, data=data, **HERE, **option)
