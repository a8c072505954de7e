"""A model that is none is told in a sentence, not by an attribute that it lacks."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import reparam
from reparam.errors import ModelError
from reparam.models.given import refuse_other


def test_what_was_wanted_passes() -> None:
    refuse_other(nn.Identity(), nn.Module, wanted="a module")
    refuse_other("name", (nn.Module, str), wanted="a model")


@pytest.mark.parametrize(
    "hand_over",
    [
        pytest.param(lambda given, out: reparam.save(given, out), id="save"),
        pytest.param(lambda given, out: reparam.lower(given), id="lower"),
        pytest.param(lambda given, out: reparam.export(given, "packed", out=out), id="export"),
        pytest.param(lambda given, out: reparam.verify(nn.Identity(), given), id="verify"),
        pytest.param(lambda given, out: reparam.convert(given, "shift-ptq"), id="convert"),
    ],
)
def test_a_verb_that_gets_a_record_says_that_it_wants_the_model_in_it(
    hand_over: Callable[[Any, Path], object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"^wanted a .*model.*, got a SimpleNamespace; pass its \.model$"):
        hand_over(SimpleNamespace(model=nn.Identity()), out)
    with pytest.raises(ModelError, match=r"^wanted a .*, got a dict$"):
        hand_over({}, out)
    assert not out.exists()
