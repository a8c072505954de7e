"""Losses and gradients that are not finite: the run ends before they reach the weights, and the place is named."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

import reparam
from reparam.errors import TrainError
from reparam.processes import process_index
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders
from reparam.train.loop import Trainer
from reparam.train.state import TrainState
from tests.pico import recipe
from tests.train.gang import together
from tests.train.loops import CPU, PLAIN, Routed, linear_problem


def test_a_loss_that_is_not_finite_names_its_stage_epoch_and_step(data: DataSettings) -> None:
    images, labels = linear_problem(8)
    bad = images.clone()
    bad[0, 0] = float("inf")
    saved: list[bool] = []
    run = Trainer(
        nn.Linear(6, 4),
        Loaders(train=[(images, labels), (images, labels), (bad, labels)], val=[(images, labels)]),
        settings=replace(PLAIN, log_interval=50),
        num_classes=4,
        device=CPU,
        stage="shift",
        save=lambda model, *, is_best: saved.append(is_best),
    )
    with pytest.raises(TrainError, match=r'stage "shift", epoch 1, step 3: the loss is (nan|inf)') as caught:
        run.fit()
    assert "the images: image 0 of the batch is the first that holds infinity" in str(caught.value)
    assert saved == [True]  # the start; nothing of the broken epoch


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad", [0, 1])
def test_a_bad_micro_batch_ends_the_run_before_it_reaches_the_weights(clip: float | None, bad: int) -> None:
    images, labels = linear_problem(8)
    batches = [(images.clone(), labels) for _ in range(2)]
    batches[bad][0][0, 0] = float("nan")
    settings = replace(PLAIN, grad_accum_steps=2, clip_grad=clip)
    model = nn.Linear(6, 4)
    before = copy.deepcopy(model.state_dict())
    loaders = Loaders(train=batches, val=[(images, labels)])
    with pytest.raises(TrainError, match="step 1: the loss is nan"):
        Trainer(model, loaders, settings=settings, num_classes=4, device=CPU).fit()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Spoilt(nn.Module):
    """Divides by zero in a layer that has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(6, 6), nn.LogSoftmax(dim=0), nn.Linear(6, 4)
        self.norm.forward = lambda x: x / 0  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)))


def test_the_layer_that_is_first_not_finite_is_named() -> None:
    images, labels = linear_problem(8)
    loaders = Loaders(train=[(images, labels)], val=[(images, labels)])
    with pytest.raises(TrainError, match=r"the loss is nan, so training cannot go on; norm: its output holds"):
        Trainer(Spoilt(), loaders, settings=PLAIN, num_classes=4, device=CPU).fit()


def linear() -> tuple[nn.Module, nn.Parameter]:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    return model, model.weight


def adder() -> tuple[nn.Module, nn.Parameter]:
    """An adder, whose gradient no clip counts, before a head that multiplies."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    rules = [{"match": {"path": "0"}, "operator": "adder_linear"}, {"match": {}, "operator": "keep"}]
    model = reparam.convert(dense, recipe(rules), example_input=torch.randn(2, 6)).model
    return model, model[0].weight


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("make", [linear, adder])
def test_a_bad_gradient_of_a_finite_loss_reaches_neither_the_weights_nor_a_state(
    make: Callable[[], tuple[nn.Module, nn.Parameter]], clip: float | None, value: float
) -> None:
    images, labels = linear_problem(8)
    model, weight = make()
    calls, states = 0, list[TrainState]()

    def spoil(gradient: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return gradient.index_fill(0, torch.tensor([1]), value) if calls == 3 else gradient

    weight.register_hook(spoil)
    settings = replace(PLAIN, grad_accum_steps=2, clip_grad=clip, recovery_interval=1)
    loaders = Loaders(train=[(images, labels)] * 6, val=[(images, labels)])
    run = Trainer(model, loaders, settings=settings, num_classes=4, device=CPU)
    run.keep = lambda state: states.append(copy.deepcopy(state))
    with pytest.raises(TrainError, match=r"epoch 1, step 2: the norm of the gradient is (nan|inf), so training"):
        run.fit()
    assert [state.updates for state in states] == [0, 1]
    kept = states[-1].parts["model"]
    assert all(torch.equal(kept[name], parameter) for name, parameter in model.named_parameters())
    assert all(value.isfinite().all() for value in kept.values())


def test_a_scaler_still_leaves_out_a_step_that_overflows_and_goes_on() -> None:
    images, labels = linear_problem(8)
    model, weight = linear()
    calls, weights = 0, list[Tensor]()

    def spoil(gradient: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        weights.append(weight.detach().clone())
        return gradient * math.inf if calls == 2 else gradient

    weight.register_hook(spoil)
    loaders = Loaders(train=[(images, labels)] * 4, val=[(images, labels)])
    settings = replace(PLAIN, epochs=1, clip_grad=None)
    run = Trainer(model, loaders, settings=settings, num_classes=4, device=CPU)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run.engine.accelerator.scaler = scaler
    run.engine.optimizer = AcceleratedOptimizer(run.engine.optimizer.optimizer, scaler=scaler)
    run.fit()
    assert [torch.equal(one, other) for one, other in itertools.pairwise(weights)] == [False, True, False]
    assert scaler.get_scale() == 512.0


def test_a_balance_loss_that_is_not_finite_is_found_again() -> None:
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    settings = replace(PLAIN, balance_loss_weight=1e39)
    loaders = Loaders(train=[(images, labels)], val=[(images, labels)])
    with pytest.raises(TrainError, match=r"the loss is inf, .* the loss: it is infinity while the model's output is"):
        Trainer(Routed(), loaders, settings=settings, num_classes=3, device=CPU).fit()


class BackwardBreaks(nn.Module):
    """Linear; the gradient of its last output is not a number, and so the last row of the weight's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * torch.tensor([1, 1, 1, math.nan]))
        return logits


def ending(model: nn.Module, settings: TrainSettings, *, bad_rank: int | None = None) -> str:
    """What a process says at the end of a training whose images are bad on one rank, if any."""
    images, labels = linear_problem(8)
    if process_index() == bad_rank:
        images[2, 0] = math.nan
    loaders = Loaders(train=[(images, labels)], val=[linear_problem(8)])
    try:
        Trainer(model, loaders, settings=settings, num_classes=4, device=CPU).fit()
    except TrainError as error:
        return str(error)
    return "none"


@pytest.fixture(scope="module")
def endings() -> list[dict[str, str]]:
    """What each of two processes says of everything; they are started once."""

    def work() -> dict[str, str]:
        routed = nn.Sequential(nn.Linear(6, 64), nn.Unflatten(1, (1, 8, 8)), Routed(), nn.Linear(3, 4))
        return {
            "images": ending(nn.Linear(6, 4), replace(PLAIN, clip_grad=None), bad_rank=1),
            "routed": ending(routed, replace(PLAIN, clip_grad=None), bad_rank=1),
            "slice": ending(BackwardBreaks(), replace(PLAIN, clip_grad=None, fsdp=True)),
        }

    return together(work)


@pytest.mark.parametrize("what", ["images", "routed"])
def test_every_process_names_the_one_whose_loss_is_not_finite_and_why(endings: list[dict[str, str]], what: str) -> None:
    for process in endings:
        assert "the loss is nan on rank 1, so training cannot go on; the images: image 2 of the batch" in process[what]


def test_a_gradient_that_is_bad_in_the_slice_of_one_process_ends_all(endings: list[dict[str, str]]) -> None:
    for process in endings:
        assert "the norm of the gradient is nan on rank 1, so training cannot go on; gradient of" in process["slice"]
