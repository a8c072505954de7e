"""Weights in the width that a device would hold them in: an operator's own by its word, all others as floats."""

import pytest
import torch
from torch import nn

from reparam.ops.weight_words import weight_words
from tests.pico import LINEAR, MLP, convert, recipe, vit


@pytest.mark.parametrize("parameterisation", ["q", "ps"])
@pytest.mark.parametrize("bits", [3, 5])
def test_a_shift_layer_holds_its_bits_for_a_weight_and_a_float_for_a_bias(bits: int, parameterisation: str) -> None:
    rule = {**LINEAR, "options": {"bits": bits, "parameterisation": parameterisation}}
    model = convert(nn.Sequential(nn.Linear(8, 24), nn.LayerNorm(24)), recipe([rule]), torch.zeros(2, 8))
    assert weight_words(model) == {f"i{bits}": 8 * 24, "f32": 24 + 2 * 24}


def test_every_term_has_a_code_of_its_own() -> None:
    rule = {**LINEAR, "options": {"bits": 4, "terms": 3}}
    model = convert(nn.Sequential(nn.Linear(8, 24, bias=False)), recipe([rule]), torch.zeros(2, 8))
    assert weight_words(model) == {"i4": 3 * 8 * 24}


def test_a_mixture_holds_both_experts_and_its_router() -> None:
    mlp = convert(vit(), recipe([MLP])).blocks[0].mlp
    weights, biases = 2 * 16 * 64, 64 + 16
    assert weight_words(mlp) == {"i5": weights, "f32": weights + 2 * biases + 2 * 16}


def test_a_dense_model_holds_floats_alone() -> None:
    model = vit()
    assert weight_words(model) == {"f32": sum(parameter.numel() for parameter in model.parameters())}
