"""`reparam.lower` takes a converted model in float32, and options that change something."""

from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import BackendError, OptionError
from tests.pico import images, vit


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"experts": "int4"}, 'experts "int4": wanted int8 or float32'),
        ({"calibration": [1]}, "wanted one batch .* a list"),
    ],
)
def test_arguments_of_another_kind_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        reparam.lower(nn.Identity(), "int8", **chosen)


@pytest.mark.parametrize(
    ("backend", "chosen", "message"),
    [
        (
            "bf16",
            {"calibration": torch.ones(1)},
            'calibration changes nothing in backend "bf16"; it is for cuda-fp8 and',
        ),
        ("float32", {"experts": "float32"}, 'experts changes nothing in backend "float32"; it is for int8$'),
    ],
)
def test_options_that_a_backend_does_not_read_are_refused(backend: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        reparam.lower(nn.Identity(), backend, **chosen)


def test_a_model_that_is_lowered_already_is_refused_with_the_first_layer_that_is() -> None:
    model = reparam.convert(vit(), "shift-ptq", example_input=images(), weights="none").model
    lowering = reparam.lower(model, "float32")
    with pytest.raises(BackendError, match=r"lowered already \(blocks\.0\.attn\.qkv is\); lower the converted model"):
        reparam.lower(lowering.model, "int8")
