from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from reparam.api.find_lr import find_lr
from reparam.api.finetune import finetune
from reparam.errors import OptionError
from reparam.recipe.data_settings import DataSettings
from tests.api.test_finetune import DEVICE, MODEL, QUICK, SHAPE, Notes, rows
from tests.train.pico import draw_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    root = draw_folder(tmp_path_factory.mktemp("images"))
    return DataSettings(data_dir=str(root), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights in a file count as trained, whatever they are."""
    shape: dict[str, Any] = {key: value for key, value in SHAPE.items() if key != "model_kwargs"}
    model = timm.create_model(MODEL, **shape, **SHAPE["model_kwargs"])
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


def test_each_stage_distils_the_features_around_what_it_converts(
    data: DataSettings, weights: str, tmp_path: Path
) -> None:
    notes = Notes()
    finetune(
        MODEL,
        recipe="shiftaddvit",
        data=data,
        settings={**QUICK, "distill_loss_weight": 0.0, "feature_loss_weight": 0.5},
        weights=weights,
        out=tmp_path / "run",
        progress=notes,
        device=DEVICE,
        **SHAPE,
    )
    told = [text for text in notes.messages if text.startswith("distilling")]
    assert told == [
        "distilling the features of blocks.0",  # the attention
        "distilling the features of blocks.0.attn, blocks.0",  # its projections, and the MLP
    ]
    assert all(float(row["feature_loss"]) > 0 and row["distill_loss"] == "" for row in rows(tmp_path / "run"))


def test_a_rate_test_follows_the_loss_with_its_features(data: DataSettings, weights: str, tmp_path: Path) -> None:
    def first_loss(weight: float) -> float:
        test = find_lr(
            MODEL,
            recipe="shiftaddvit",
            data=data,
            settings={**QUICK, "distill_loss_weight": 0.0, "feature_loss_weight": weight},
            weights=weights,
            out=tmp_path / "run",
            device=DEVICE,
            **SHAPE,
        )
        return test.losses[0]

    without, once, twice = map(first_loss, (0.0, 1e5, 2e5))  # at random weights a block hardly changes its input
    assert once > without
    assert twice - without == pytest.approx(2 * (once - without), rel=1e-3)


def test_a_random_original_does_not_teach_features_either(data: DataSettings, tmp_path: Path) -> None:
    notes = Notes()
    settings = {**QUICK, "distill_loss_weight": 0.0, "feature_loss_weight": 0.5}
    out = tmp_path / "run"
    finetune(
        MODEL,
        recipe="deepshift-q",
        data=data,
        settings=settings,
        weights="none",
        out=out,
        progress=notes,
        device=DEVICE,
        **SHAPE,
    )
    assert "no distillation: the dense original has random weights" in notes.messages
    assert rows(out)[0]["feature_loss"] == ""


def test_a_recipe_that_converts_nothing_has_no_features_to_distil(
    data: DataSettings, weights: str, tmp_path: Path
) -> None:
    settings = {**QUICK, "feature_loss_weight": 0.5}
    with pytest.raises(OptionError, match="at the 0 converted sites of this stage"):
        finetune(
            MODEL,
            recipe="none",
            data=data,
            settings=settings,
            weights=weights,
            out=tmp_path / "run",
            device=DEVICE,
            **SHAPE,
        )
