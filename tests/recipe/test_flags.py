"""Settings as flags: what they spell is what the command line reads."""

import pytest

from reparam.recipe.data_settings import DataSettings
from reparam.recipe.flags import data_flags, flag


def test_only_what_differs_from_its_default_is_spelled_in_the_order_of_the_settings() -> None:
    data = DataSettings(std=(0.2, 0.3), data_dir="a b", val_split="validation", dataset_download=True)
    assert list(data_flags(data)) == ["--data-dir", "a b", "--dataset-download", "--std", "0.2", "0.3"]
    assert list(data_flags(DataSettings())) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("clip_grad", None, ["--clip-grad", "none"]),
        ("no_aug", True, ["--no-aug"]),
        ("lr", 0.001, ["--lr", "0.001"]),
        ("scale", (0.5, 1.0), ["--scale", "0.5", "1.0"]),
    ],
)
def test_a_setting_is_spelled_as_its_flag_takes_it(name: str, value: object, words: list[str]) -> None:
    assert flag(name, value) == words
