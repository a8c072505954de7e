"""Latencies of experts: whose, on which tokens, and in which mode; the modelled ones against hand-made sums."""

import pytest
import torch
from torch import Tensor, nn

from reparam.cost.expert_latency import measure_experts, model_experts
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from tests.pico import MLP, convert, images, recipe, vit


def converted(**options: object) -> nn.Module:
    return convert(vit(), recipe([{**MLP, "options": options}]))


def routed() -> MoeMlp:
    example = next(e for e in MoeMlp.examples() if e.name == "depthwise")
    return MoeMlp.from_dense(example.dense(), example.site, example.options)


def test_each_mixture_is_measured_on_the_tokens_of_the_batch_and_alike_ones_once() -> None:
    found = measure_experts(converted(), images(3), run_time=0.01)
    assert list(found) == ["blocks.0.mlp", "blocks.1.mlp"]
    first, second = found.values()
    assert first is second
    assert (first.tokens, first.batch, first.threads, first.device) == (3 * 17, 3, torch.get_num_threads(), "cpu")
    assert first.source == "measured here"
    assert min(first.pair) > 0
    assert min(first.multiply_iqr_ms, first.shift_iqr_ms) >= 0
    assert first.pair == (first.multiply_ms, first.shift_ms)


def test_both_experts_run_alone_on_all_tokens_in_evaluation_without_gradients() -> None:
    model = converted().train()
    model.blocks[1].eval()
    seen: dict[str, set[tuple[tuple[int, ...], bool, bool]]] = {"multiply": set(), "shift": set()}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_inference_mode_enabled():
            seen[name].add((tuple(inputs[0].shape), module.training, torch.is_grad_enabled()))

    for name in seen:
        expert = model.get_submodule(f"blocks.0.mlp.{name}")
        expert.register_forward_pre_hook(lambda module, inputs, name=name: note(name, module, inputs))
    modes = [module.training for module in model.modules()]
    measure_experts(model, images(2), run_time=0.01)
    assert seen == {name: {((2 * 17, 16), False, False)} for name in seen}
    assert [module.training for module in model.modules()] == modes
    model(images(2)).sum().backward()  # nothing that was cached on the way is an inference tensor


def test_each_layer_of_an_mlp_that_mixes_tokens_is_a_mixture_of_its_own() -> None:
    mlp = routed()
    found = measure_experts(mlp, torch.randn(2, 4, 8), run_time=0.01)
    assert list(found) == list(model_experts(mlp)) == ["body.fc1", "body.fc2"]
    assert all(isinstance(mlp.get_submodule(path), RoutedLayer) for path in found)
    assert {figures.tokens for figures in found.values()} == {8}


def test_an_mlp_whose_forward_counts_axes_is_measured_as_its_forward_runs_it() -> None:
    for name in ("packed", "maps"):
        example = next(e for e in MoeMlp.examples() if e.name == name)
        mlp = MoeMlp.from_dense(example.dense(), example.site, example.options)
        (figures,) = measure_experts(mlp, *example.inputs(), run_time=0.01).values()
        assert figures.tokens == 8, name


def test_without_mixtures_there_is_nothing_to_measure() -> None:
    assert measure_experts(vit(), images()) == {}
    assert model_experts(vit()) == {}


def test_the_modelled_cost_is_the_hand_made_sum_of_energies_for_one_token() -> None:
    (figures, _) = model_experts(converted()).values()
    products, biases = 2 * 16 * 64, 64 + 16
    assert figures.multiply_pj == pytest.approx(products * (3.7 + 0.9) + biases * 0.9)
    assert figures.shift_pj == pytest.approx(products * (0.13 + 0.9) + biases * 0.9)
    assert figures.source == "modelled"


def test_fixed_point_words_are_cheaper_and_their_scaling_is_paid_for() -> None:
    (figures, _) = model_experts(converted(shift={"activation_bits": 8})).values()
    products, biases, inputs = 2 * 16 * 64, 64 + 16, 16 + 64
    scaling = 2 * inputs * (0.13 + 0.9)
    assert figures.shift_pj == pytest.approx(products * (0.024 + 0.1) + biases * 0.1 + scaling)
