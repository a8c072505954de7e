from collections.abc import Callable
from pathlib import Path

import pytest
from timm.models.vision_transformer import VisionTransformer

from reparam.recipe.data_settings import DataSettings
from tests.train.pico import draw_folder, pico_vit


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def data(images: Path) -> DataSettings:
    return DataSettings(data_dir=str(images), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)


@pytest.fixture
def make_vit() -> Callable[..., VisionTransformer]:
    return pico_vit


@pytest.fixture
def make_folder() -> Callable[..., Path]:
    return draw_folder
