"""A whole model, layer by layer: closer to the dense one, in the order of its run, resumable, never silent."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.calibrate.journal import Journal
from reparam.calibrate.order import find_order
from reparam.calibrate.records import CalibrationStep
from reparam.calibrate.sweep import calibrate_
from reparam.errors import DataError
from reparam.graph.observe import observe_attention_
from reparam.graph.rewrite import rewrite
from reparam.models.cifar_resnet import CifarResNet
from reparam.ops.fixed_point import FixedPoint
from reparam.recipe.schema import Recipe
from tests.pico import ATTENTION, LINEAR, convert, images, plan_for, recipe, vit


def calibrated_recipe(**options: Any) -> Recipe:
    chosen = {"options": {"init": "calibrated", "bits": 4, **options}, "optional": True}
    return recipe([{**LINEAR, **chosen}, {"match": {"kind": "conv2d"}, "operator": "shift_conv2d", **chosen}])


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(1, num_classes=3).eval()


def pair(make: Callable[[], nn.Module] = vit, **options: Any) -> tuple[nn.Module, nn.Module]:
    dense = make()
    model = convert(copy.deepcopy(dense), calibrated_recipe(**options), images()).eval()
    return model, dense


def distance(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - dense(x)).square().mean())


@pytest.mark.parametrize("make", [vit, resnet], ids=["vit", "resnet"])
@pytest.mark.parametrize("options", [{}, {"terms": 2}, {"activation_bits": 8}], ids=str)
def test_the_models_answers_come_closer_on_images_it_has_not_seen(
    make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    model, dense = pair(make, **options)
    before = distance(model, dense, images(64, seed=7))
    found = calibrate_(model, dense, images(64))
    assert distance(model, dense, images(64, seed=7)) < before
    assert all(fit.error <= fit.rounded_error for fit in found.layers)
    assert found.images == 64
    assert not found.uncalibrated


def test_layers_come_in_the_order_of_the_run_and_are_told_one_by_one() -> None:
    model, dense = pair()
    told: list[CalibrationStep] = []
    found = calibrate_(model, dense, images(32), progress=told.append)
    layers = [f"blocks.{b}.{name}" for b in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert [fit.path for fit in found.layers] == ["patch_embed.proj", *layers, "head"]
    assert [step.number for step in told] == list(range(1, len(told) + 1))
    assert {step.layers for step in told} == {len(told)}
    assert tuple(step.fit for step in told) == found.layers


def test_blocks_are_the_outermost_members_of_lists() -> None:
    model, dense = pair()
    order = find_order(model, dense, images(2), chosen=lambda path: True)
    assert {target.block for target in order.targets} == {None, "blocks.0", "blocks.1"}
    model, dense = pair(resnet)
    order = find_order(model, dense, images(2), chosen=lambda path: True)
    assert {target.block for target in order.targets} == {None, "layer1.0", "layer2.0", "layer3.0"}


def test_only_layers_that_ask_for_it_change() -> None:
    dense = vit()
    model = convert(copy.deepcopy(dense), recipe([LINEAR]), images()).eval()
    before = copy.deepcopy(model.state_dict())
    assert calibrate_(model, dense, images(32)).layers == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_dense_model_and_the_modes_of_both_are_left_alone() -> None:
    model, dense = pair()
    before = copy.deepcopy(dense.state_dict())
    model.train()
    calibrate_(model, dense, images(32))
    assert model.training
    assert not dense.training
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_it_is_deterministic() -> None:
    first, second = pair(), pair()
    for model, dense in (first, second):
        calibrate_(model, dense, images(32))
    assert torch.equal(first[0](images()), second[0](images()))


class Stopped(Exception):
    pass


def test_a_calibration_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, dense = pair()
    wanted = calibrate_(whole, dense, images(32))
    model, dense = pair()

    def stop(step: CalibrationStep) -> None:
        if step.number == 4:
            raise Stopped

    with pytest.raises(Stopped):
        calibrate_(model, dense, images(32), journal=Journal(tmp_path / "kept", "key"), progress=stop)
    assert len(list((tmp_path / "kept").iterdir())) == 4
    again, dense = pair()
    found = calibrate_(again, dense, images(32), journal=Journal(tmp_path / "kept", "key"))
    assert found == wanted
    assert torch.equal(again(images()), whole(images()))


def test_too_few_images_are_refused() -> None:
    model, dense = pair()
    with pytest.raises(DataError, match="wanted at least 32 images, got 5"):
        calibrate_(model, dense, images(5))


@pytest.mark.parametrize("options", [{}, {"activation_bits": 8}], ids=str)
def test_numbers_that_are_not_finite_end_it_with_the_layer_that_meets_them_first(options: dict[str, Any]) -> None:
    """A Hessian of NaN has no inverse, however much it is damped."""
    model, dense = pair(**options)
    pictures = images(32)
    pictures[3, 0, 2, 2] = torch.inf
    with pytest.raises(
        DataError, match=r"calibration: patch_embed\.proj is given or makes numbers that are not finite"
    ):
        calibrate_(model, dense, pictures)


class Idle(nn.Module):
    """Its second layer runs only for small inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.used(x)
        return x if len(x) > 4 else self.unused(x)


def test_a_layer_that_did_not_run_is_named_and_keeps_its_rounded_weights() -> None:
    torch.manual_seed(0)
    dense = Idle()
    model = convert(copy.deepcopy(dense), recipe([{**LINEAR, "options": {"init": "calibrated"}}]), torch.zeros(2, 3))
    rounded = model.unused.weight.detach().clone()
    found = calibrate_(model, dense, torch.randn(32, 3))
    assert [fit.path for fit in found.layers] == ["used"]
    assert [(left.path, left.reason) for left in found.uncalibrated] == [
        ("unused", "it did not run on the calibration images")
    ]
    assert torch.equal(model.unused.weight, rounded)


def test_shift_experts_of_a_mixture_have_no_dense_layer_to_follow_and_are_named() -> None:
    dense = vit()
    rule = {"match": {"kind": "mlp"}, "operator": "moe_mlp", "options": {"shift": {"init": "calibrated"}}}
    model = convert(copy.deepcopy(dense), recipe([rule]), images())
    found = calibrate_(model, dense, images(32))
    assert found.layers == ()
    assert {left.reason for left in found.uncalibrated} == {"the dense model has no layer of its own at this path"}
    assert len(found.uncalibrated) == 4


def test_activation_grids_take_their_range_from_the_images() -> None:
    model, dense = pair(activation_bits=8)
    calibrate_(model, dense, images(32))
    grids = [module for module in model.modules() if isinstance(module, FixedPoint)]
    assert len({float(grid.absmax) for grid in grids}) > 1


def test_the_public_records_are_the_rooms_own() -> None:
    assert reparam.CalibrationStep is CalibrationStep


def attention_pair(make: Callable[[], nn.Module] = vit, **options: Any) -> tuple[nn.Module, nn.Module]:
    rule = {**ATTENTION, "options": {"init": "calibrated", "scales": "learned", **options}}
    dense = make()
    planned = plan_for(dense, recipe([rule]))
    model = rewrite(copy.deepcopy(dense), planned, images()).eval()
    return model, observe_attention_(dense, planned.steps, images())


def test_attention_follows_the_softmax_block_by_block() -> None:
    model, dense = attention_pair()
    before = distance(model, dense, images(64, seed=7))
    found = calibrate_(model, dense, images(64))
    assert [fit.path for fit in found.layers] == ["blocks.0.attn.core", "blocks.1.attn.core"]
    assert all(fit.error < fit.rounded_error for fit in found.layers)
    assert distance(model, dense, images(64, seed=7)) < before


def test_attention_without_anything_to_follow_is_named() -> None:
    model, _ = attention_pair()
    found = calibrate_(model, vit(), images(32))
    assert {left.path for left in found.uncalibrated} == {"blocks.0.attn.core", "blocks.1.attn.core"}


def test_layers_that_are_not_chosen_keep_what_they_have() -> None:
    """A later stage must not fit again what an earlier one has trained."""
    model, dense = attention_pair()
    before = copy.deepcopy(model.blocks[0].attn.core.state_dict())
    found = calibrate_(model, dense, images(32), chosen=lambda path: path.startswith("blocks.1"))
    assert [fit.path for fit in found.layers] == ["blocks.1.attn.core"]
    assert all(torch.equal(before[name], t) for name, t in model.blocks[0].attn.core.state_dict().items())


def test_attention_that_meets_numbers_that_are_not_finite_is_named() -> None:
    model, dense = attention_pair()
    pictures = images(32)
    pictures[3, 0, 2, 2] = torch.inf
    with pytest.raises(DataError, match=r"calibration: blocks\.0\.attn\.core is given or makes numbers"):
        calibrate_(model, dense, pictures)


@pytest.mark.parametrize("make", [vit, resnet], ids=["vit", "resnet"])
def test_tuned_blocks_come_closer_and_keep_their_rounded_weights(make: Callable[[], nn.Module]) -> None:
    plain, dense = pair(make)
    tuned, _ = pair(make)
    calibrate_(plain, dense, images(64))
    told: list[CalibrationStep] = []
    found = calibrate_(tuned, dense, images(64), tune_steps=20, progress=told.append)
    assert found.blocks
    assert all(fit.error <= fit.rounded_error for fit in found.blocks)
    assert sum(fit.error for fit in found.blocks) < sum(fit.rounded_error for fit in found.blocks)
    first = found.layers[0].path
    assert torch.equal(tuned.get_submodule(first).weight, plain.get_submodule(first).weight)  # type: ignore[arg-type]
    assert [step.number for step in told] == list(range(1, len(found.layers) + len(found.blocks) + 1))
    assert {step.layers for step in told} == {len(told)}
    assert all(parameter.grad is None for parameter in tuned.parameters())


def test_a_stopped_tuning_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, dense = pair()
    wanted = calibrate_(whole, dense, images(32), tune_steps=5)
    model, dense = pair()

    def stop(step: CalibrationStep) -> None:
        if step.fit.path == "blocks.0":
            raise Stopped

    with pytest.raises(Stopped):
        calibrate_(model, dense, images(32), tune_steps=5, journal=Journal(tmp_path, "key"), progress=stop)
    again, dense = pair()
    found = calibrate_(again, dense, images(32), tune_steps=5, journal=Journal(tmp_path, "key"))
    assert found == wanted
    assert torch.equal(again(images()), whole(images()))


class Pairs(nn.Module):
    """Its blocks take two tensors."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            result: Tensor = self.fc(x) + skip
            return result

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.Block(), self.Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, x)
        return x


def test_blocks_that_take_more_than_one_tensor_are_named_and_not_tuned() -> None:
    torch.manual_seed(0)
    dense = Pairs().eval()
    rule = recipe([{**LINEAR, "options": {"init": "calibrated"}}])
    model = convert(copy.deepcopy(dense), rule, torch.zeros(2, 3)).eval()
    found = calibrate_(model, dense, torch.randn(32, 3), tune_steps=5)
    assert found.untuned == ("blocks.0", "blocks.1")
    assert found.blocks == ()
    assert len(found.layers) == 2
