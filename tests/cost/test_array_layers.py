"""A run as layers of the Eyeriss-like array: which products, of which sizes, and what they cost together."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from reparam.cost.array_layers import array_layers, price_on_array
from reparam.cost.count import count_operations
from reparam.cost.eyeriss import ArrayLayer, array_cost
from reparam.trace.probe import probe
from tests.pico import ATTENTION, LINEAR, MLP, cnn, convert, images, recipe, token_net, vit


def layers_of(model: nn.Module, **shares: float) -> Counter[ArrayLayer]:
    layers = Counter[ArrayLayer]()
    for layer, times in array_layers(model, probe(model, images()), mult_share=shares):
        layers[layer] += times
    return layers


def matrix(arithmetic: str, rows: int, inputs: int, outputs: int) -> ArrayLayer:
    return ArrayLayer(arithmetic=arithmetic, rows=rows, inputs=inputs, outputs=outputs)  # type: ignore[arg-type]


def test_a_vit_is_its_layers_and_the_two_products_of_each_attention() -> None:
    patches = ArrayLayer(
        arithmetic="mul", rows=1, inputs=3, outputs=16, kernel=(4, 4), plane=(16, 16), out_plane=(4, 4), stride=4,
        is_convolution=True,
    )  # fmt: skip
    assert layers_of(vit()) == {
        patches: 1,
        matrix("mul", 17, 16, 48): 2,
        matrix("mul", 2 * 17, 8, 17): 2,
        matrix("mul", 2 * 17, 17, 8): 2,
        matrix("mul", 17, 16, 16): 2,
        matrix("mul", 17, 16, 64): 2,
        matrix("mul", 17, 64, 16): 2,
        matrix("mul", 1, 16, 3): 1,
    }


@pytest.mark.parametrize("spelling", ["permuted keys", "matmul", "fused", "product modules"])
def test_every_spelling_of_attention_is_the_same_layers(spelling: str) -> None:
    assert layers_of(token_net(spelling)) == layers_of(token_net("softmax module"))


def test_a_grouped_convolution_runs_once_for_each_group() -> None:
    (grouped,) = [layer for layer, times in layers_of(cnn()).items() if times == 4]
    assert (grouped.inputs, grouped.outputs, grouped.kernel, grouped.out_plane) == (1, 1, (3, 3), (14, 14))


def test_converted_layers_shift_and_the_binary_products_add() -> None:
    layers = layers_of(convert(vit(), recipe([ATTENTION, LINEAR])))
    assert layers[matrix("shift", 17, 16, 48)] == 2
    assert layers[matrix("add", 2 * 8, 17, 8)] == 2
    assert layers[matrix("add", 2 * 17, 8, 8)] == 2
    assert not any(layer.arithmetic == "mul" and layer.rows > 1 for layer in layers)


def test_experts_get_the_tokens_of_their_measured_share_and_an_expert_without_tokens_is_no_layer() -> None:
    model = convert(vit(), recipe([MLP]))
    layers = layers_of(model, **{"blocks.0.mlp.router": 1.0, "blocks.1.mlp.router": 5 / 17})
    assert layers[matrix("mul", 17, 16, 64)] == layers[matrix("mul", 5, 16, 64)] == 1
    assert layers[matrix("shift", 12, 16, 64)] == 1
    assert not any(layer.rows == 0 for layer in layers)


@pytest.mark.parametrize("make", [vit, cnn, lambda: token_net("softmax module")])
def test_products_are_the_multiplications_that_are_counted_beside_norms_and_activations(
    make: Callable[[], nn.Module],
) -> None:
    model = make()
    trace = probe(model, images())
    products = sum(layer.products * times for layer, times in array_layers(model, trace, mult_share={}))
    counted = count_operations(model, trace)[0].total("mul") / 2
    assert products <= counted < 1.25 * products


def test_the_energy_is_the_sum_of_the_layers_and_the_int8_baseline_is_cheaper() -> None:
    model = convert(vit(), recipe([ATTENTION, LINEAR]))
    trace = probe(model, images())
    energy = price_on_array(model, trace, mult_share={})
    wanted = Counter[str]()
    for layer, times in layers_of(model).items():
        cost = array_cost(layer)
        wanted[layer.arithmetic] += cost.picojoules * times if cost else 0  # type: ignore[assignment]
    assert energy.by_operation == pytest.approx(dict(wanted))
    assert energy.picojoules == pytest.approx(sum(wanted.values()))
    assert price_on_array(model, trace, mult_share={}, bits=8).picojoules < energy.picojoules


def test_a_layer_that_fits_no_tiling_is_listed_as_not_priced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16))
    trace = probe(model, torch.zeros(2, 3, 32, 32))
    energy = price_on_array(model, trace, mult_share={})
    assert (energy.picojoules, energy.unpriced) == (0.0, {"mul.f32": 4 * 4 * 3 * 256})
