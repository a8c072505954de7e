"""What a launcher may not decide."""

import pytest

from reparam.errors import OptionError
from reparam.train.engine import pick_device


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "say --amp"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "say --torchcompile"),
        ("ACCELERATE_USE_FSDP", "true", "say --fsdp"),
    ],
)
def test_a_setting_of_the_launcher_that_would_change_the_training_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, instead: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=rf"{name}={value}, which is a setting .* {instead}"):
        pick_device("cpu")


def test_what_the_launcher_leaves_off_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MIXED_PRECISION": "no", "DYNAMO_BACKEND": "NO", "USE_FSDP": "false"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert pick_device("cpu").type == "cpu"
