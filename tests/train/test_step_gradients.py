"""AdderNet's adaptive learning rate in the optimiser's step: one norm, whatever scaled or split the gradient before."""

import math
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

import reparam
from reparam.ops.adder_layer import scaled_gradient
from reparam.recipe.settings import TrainSettings
from reparam.train.engine import Engine
from reparam.train.step_gradients import StepGradients
from tests.pico import recipe

ETA = 0.2


def net(**options: Any) -> nn.Module:
    """An adder convolution with its norm, and a head that multiplies."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    adder = {"match": {"kind": "conv2d"}, "operator": "adder_conv2d", "options": options}
    return reparam.convert(dense, recipe([adder]), example_input=torch.randn(2, 3, 8, 8)).model.train()


def engine(model: nn.Module, *, lr: float = 1.0, **settings: Any) -> Engine:
    AcceleratorState._reset_state(reset_partial_state=True)
    chosen = TrainSettings(**{"clip_grad": None, **settings})
    return Engine(model, torch.optim.SGD(model.parameters(), lr=lr), chosen, device=torch.device("cpu"))


def moved(model: nn.Module, *, scale: float = 1.0, parts: int = 1, **settings: Any) -> dict[str, torch.Tensor]:
    """What one step of plain SGD at rate 1 subtracts from each parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = engine(model, **settings)
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for part in x.chunk(parts):
        made.backward(made.student(part).square().sum() * scale)
    made.clip()
    made.step()
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def test_the_step_of_an_adder_has_rms_eta() -> None:
    step = moved(net())["0.weight"]
    assert float(step.norm()) == pytest.approx(ETA * math.sqrt(step.numel()), rel=1e-5)


def test_the_scale_of_the_loss_does_not_change_it_and_changes_all_other_steps() -> None:
    one, other = moved(net()), moved(net(), scale=1024.0)
    torch.testing.assert_close(one["0.weight"], other["0.weight"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(1024 * one["3.weight"], other["3.weight"], rtol=1e-4, atol=1e-3)


def test_micro_batches_are_added_first_and_normalised_once() -> None:
    step = moved(net(), parts=4)["0.weight"]
    assert float(step.norm()) == pytest.approx(ETA * math.sqrt(step.numel()), rel=1e-5)


def test_a_clip_leaves_adders_out_and_still_clips_the_rest() -> None:
    step = moved(net(), scale=1e4, clip_grad=1.0)
    assert float(step["0.weight"].norm()) == pytest.approx(ETA * math.sqrt(step["0.weight"].numel()), rel=1e-5)
    others = torch.cat([change.flatten() for name, change in step.items() if name != "0.weight"])
    assert float(others.norm()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("lr", ["plain", "backward"])
def test_the_step_leaves_a_gradient_alone_that_its_operator_does_not_name(lr: str) -> None:
    gradients = StepGradients.of(net(lr=lr))
    assert gradients.scaled == ()
    assert len(gradients.others) == len(list(net(lr=lr).parameters()))


def test_frozen_adders_and_missing_gradients_are_no_trouble() -> None:
    model = net()
    StepGradients.of(model).scale_()
    model[0].weight.requires_grad_(False)
    assert StepGradients.of(model).scaled == ()


def test_a_gradient_of_zero_stays_zero_and_one_that_is_not_finite_stays_so() -> None:
    model = net()
    gradients = StepGradients.of(model)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    gradients.scale_()
    assert not model[0].weight.grad.any()
    model[0].weight.grad[0, 0, 0, 0] = torch.inf
    gradients.scale_()
    assert not torch.isfinite(model[0].weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_every_type_get_the_norm_however_small_they_were(dtype: torch.dtype) -> None:
    gradient = torch.full((64, 64), 1e-6).to(dtype)
    scaled = scaled_gradient(gradient, ETA)
    assert scaled.dtype == dtype
    torch.testing.assert_close(scaled, torch.full_like(gradient, ETA), rtol=1e-2, atol=0)
