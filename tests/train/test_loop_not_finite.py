"""Losses and gradients that are not finite: the run ends before they reach the weights, and the place is named."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import TrainError
from reparam.recipe.data_settings import DataSettings
from reparam.train.data import Loaders
from reparam.train.loop import Trainer
from tests.train.loops import CPU, PLAIN, linear_problem


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
