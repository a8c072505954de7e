"""What tests of the verbs share: a small data set, and no pictures unless a module is about them."""

from pathlib import Path

import pytest

from reparam.recipe.data_settings import DataSettings
from tests.train.pico import draw_folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of dark, grey and light images, one channel of 8 x 8 pixels."""
    return draw_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def data(images: Path) -> DataSettings:
    """That folder, with whole images in [-1, 1]."""
    return DataSettings(data_dir=str(images), mean=(0.5,), std=(0.5,), crop_pct=1.0)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds of a run that trains for one; a module that looks at pictures says so by `PICTURES`."""
    if not getattr(request.module, "PICTURES", False):
        monkeypatch.setattr("reparam.reporting.plots.can_draw", lambda: False)
