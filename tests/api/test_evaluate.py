from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reparam.api.convert import convert
from reparam.api.evaluate import evaluate
from reparam.checkpoint.load import load
from reparam.errors import CheckpointError, DataError, ModelError, OptionError, TrainError
from reparam.recipe.data_settings import DataSettings
from reparam.train.evaluate import Evaluation
from tests.api.staged import MODEL, SHAPE

HERE: dict[str, Any] = {"workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("runs") / "shiftaddvit"
    convert(MODEL, "shiftaddvit", weights="none", out=out, **SHAPE)
    return out


@pytest.mark.parametrize("part", ["", "dense"])
def test_a_checkpoint_is_measured_as_by_hand_and_gets_the_result(
    run: Path, images: Path, data: DataSettings, part: str
) -> None:
    evaluation = evaluate(run / part, data=data, batch_size=7, **HERE)
    paths = sorted((images / "validation").glob("*/*.png"))
    pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32)) for path in paths])
    labels = torch.tensor([("dark", "grey", "light").index(path.parent.name) for path in paths])
    with torch.no_grad():
        logits = load(run / part)((pixels[:, None] / 255 - 0.5) / 0.5)
    assert evaluation.images == len(paths) == 18
    assert evaluation.top1 == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())
    assert evaluation.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert Evaluation.model_validate_json((run / part / "evaluate.json").read_text()) == evaluation


def test_results_per_class_carry_the_names_of_the_folders_and_the_matrix_has_its_own_file(
    run: Path, images: Path, data: DataSettings
) -> None:
    evaluation = evaluate(run, data=data, batch_size=7, per_class=True, **HERE)
    assert [(row.name, row.images) for row in evaluation.per_class] == [("dark", 6), ("grey", 6), ("light", 6)]
    right = sum(row.recall * row.images / 100 for row in evaluation.per_class if row.recall is not None)
    assert 100 * right / 18 == pytest.approx(evaluation.top1)
    head, *rows = (run / "confusion.csv").read_text().splitlines()
    assert head == "true class,dark,grey,light"
    assert evaluation.confusion == tuple(tuple(map(int, row.split(",")[1:])) for row in rows)
    assert "confusion" not in (run / "evaluate.json").read_text()
    evaluate(run, data=data, **HERE)
    assert not (run / "confusion.csv").exists()  # it would stand beside figures that are not its own


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"m\.txt"):
        evaluate(run, data=DataSettings(), confusion=tmp_path / "m.txt", **HERE)


def test_a_named_model_is_measured_and_leaves_nothing_behind(
    data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation = evaluate(MODEL, data=data, weights="none", **HERE, **SHAPE)
    assert evaluation.images == 18
    assert list(tmp_path.iterdir()) == []


def test_the_split_itself_may_be_given(run: Path, images: Path, data: DataSettings) -> None:
    given = DataSettings(data_dir=str(images / "validation"), mean=(0.5,), std=(0.5,), crop_pct=1.0)
    assert evaluate(run, data=given, **HERE).top1 == evaluate(run, data=data, **HERE).top1


def test_a_class_mismatch_is_a_data_error(data: DataSettings) -> None:
    with pytest.raises(DataError, match=r"3 classes .* but the model has 7 outputs"):
        evaluate(MODEL, data=data, weights="none", **HERE, **{**SHAPE, "num_classes": 7})


def test_arguments_that_shape_a_model_are_refused_for_a_checkpoint(run: Path, data: DataSettings) -> None:
    with pytest.raises(ModelError, match="img_size, in_chans shape a model"):
        evaluate(run, data=data, img_size=8, in_chans=1, **HERE)


def test_weights_are_refused_for_a_checkpoint_which_has_its_own(run: Path, data: DataSettings) -> None:
    with pytest.raises(
        ModelError, match=r"weights shapes a model .* weights of its own\. Leave it out, or name the model"
    ):
        evaluate(run, data=data, weights="none", **HERE)


def test_a_folder_that_is_not_reparams_is_refused(tmp_path: Path, data: DataSettings) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a reparam checkpoint"):
        evaluate(tmp_path, data=data, **HERE)


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_refused(run: Path, data: DataSettings, device: str) -> None:
    with pytest.raises(TrainError, match=device):
        evaluate(run, data=data, device=device)
