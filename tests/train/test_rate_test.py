import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from reparam.errors import OptionError
from reparam.recipe.settings import TrainSettings
from reparam.train.data import Loaders
from reparam.train.rate_test import RateSweep, find_rate, run_rate_test

CPU = torch.device("cpu")
PLAIN = TrainSettings(
    epochs=2, batch_size=6, workers=0, no_aug=True, distill_loss_weight=0.0, opt="momentum", momentum=0.0
)


class Quadratic:
    """Gradient descent on f(x) = sum(h_i x_i**2) / 2 + floor; it is stable for rates below 2 / max(h)."""

    def __init__(self, *curvatures: float, floor: float = 0.0) -> None:
        self.curvatures, self.floor = curvatures, floor
        self.x = [1.0 / math.sqrt(h) for h in curvatures]
        self.rates: list[float] = []

    def __call__(self, lr: float) -> float:
        self.rates.append(lr)
        loss = self.floor + sum(h * x * x for h, x in zip(self.curvatures, self.x, strict=True)) / 2
        self.x = [x - lr * h * x for h, x in zip(self.curvatures, self.x, strict=True)]
        return loss


@pytest.mark.parametrize("largest", [30.0, 1e3, 1e5])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_both_suggestions_are_below_the_stability_limit_and_not_idle(largest: float, floor: float) -> None:
    test = find_rate(Quadratic(largest, largest / 20, floor=floor))
    assert test.steepest is not None
    assert test.tenth_of_best is not None
    limit = 2 / largest
    assert limit / 1000 < test.steepest < limit
    assert limit / 1000 < test.tenth_of_best < limit


def test_it_stops_soon_after_the_loss_grows_beyond_four_times_its_best() -> None:
    test = find_rate(Quadratic(1e3, 50.0, floor=0.3))
    assert test.ended.startswith("the loss was over 4 times its best at ")
    assert 2 / 1e3 < test.rates[-1] < 20 / 1e3
    assert test.smoothed_losses[-1] > 4 * min(test.smoothed_losses) >= test.smoothed_losses[-2]


def test_rates_grow_by_one_factor_from_the_lowest_to_the_highest() -> None:
    problem = Quadratic(1e-3)
    test = find_rate(problem, steps=8, lowest=1e-7, highest=1.0)
    assert problem.rates == pytest.approx([10.0**power for power in range(-7, 1)])
    assert list(test.rates) == problem.rates
    assert test.ended == "the highest rate was reached"


def test_losses_and_rates_are_smoothed_by_the_same_weighted_mean_of_all_before() -> None:
    losses = [3.0, 1.0, 2.0, 5.0, 4.0]
    given = iter(losses)
    test = find_rate(lambda lr: next(given), steps=5)
    for i in range(5):
        weights = [0.9 ** (i - j) for j in range(i + 1)]
        logs = [math.log(rate) for rate in test.rates[: i + 1]]
        loss, log = (sum(map(math.prod, zip(weights, z, strict=False))) / sum(weights) for z in (losses, logs))
        assert test.smoothed_losses[i] == pytest.approx(loss)
        assert test.smoothed_rates[i] == pytest.approx(math.exp(log))
    assert list(test.losses) == losses


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_it_and_is_left_out(bad: float) -> None:
    given = iter([3.0, 2.0, bad])
    test = find_rate(lambda lr: next(given), steps=8)
    assert test.losses == (3.0, 2.0)
    assert test.ended == "the loss was not finite at 1e-05"


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    given = iter(1.0 + 0.01 * i for i in range(100))
    test = find_rate(lambda lr: next(given))
    assert (test.steepest, test.tenth_of_best) == (None, None)


def test_the_steepest_rate_is_where_the_loss_falls_and_not_later() -> None:
    given = iter([2.0] * 40 + [2.0 - 0.1 * i for i in range(1, 11)] + [1.0] * 50)
    test = find_rate(lambda lr: next(given))
    assert test.steepest is not None
    assert test.rates[39] < test.steepest < test.rates[50]


def test_the_other_suggestion_is_a_tenth_of_where_the_loss_is_lowest() -> None:
    given = iter([abs(i - 60) / 60 + 1.0 for i in range(100)])
    test = find_rate(lambda lr: next(given))
    assert test.tenth_of_best is not None
    assert test.rates[55] < 10 * test.tenth_of_best < test.rates[65]


def test_the_noise_of_the_first_losses_is_not_read() -> None:
    given = iter([9.0, 2.0, 4.0] + [3.0 - 0.01 * i for i in range(97)])
    test = find_rate(lambda lr: next(given))
    assert test.steepest is not None
    assert test.steepest >= test.smoothed_rates[10]


def test_one_step_is_too_few() -> None:
    with pytest.raises(OptionError, match="at least 2 steps, got 1; lower batch_size"):
        RateSweep(steps=1)


def batches(count: int, *, images: int = 8) -> Loaders:
    generator = torch.Generator().manual_seed(3)
    made = [
        (torch.randn(images, 6, generator=generator), torch.randint(4, (images,), generator=generator))
        for _ in range(count)
    ]
    return Loaders(train=made, val=[])


def run(model: nn.Module, loaders: Loaders, settings: TrainSettings = PLAIN, **options: Any) -> Any:
    return run_rate_test(model, loaders, settings=settings, num_classes=4, device=CPU, **options)


def test_the_trainer_takes_each_rate_for_one_step() -> None:
    torch.manual_seed(0)
    model, loaders = nn.Linear(6, 4), batches(6)
    settings = replace(PLAIN, clip_grad=None, weight_decay=0.0, smoothing=0.0, sched="cosine")
    test = run(model, loaders, settings)
    weight, bias = (p.detach().clone().requires_grad_() for p in (model.weight, model.bias))
    expected = []
    for rate, (images, labels) in zip(test.rates, loaders.train, strict=True):
        loss = nn.functional.cross_entropy(images @ weight.T + bias, labels)
        gradients = torch.autograd.grad(loss, (weight, bias))
        weight, bias = (p.detach() - rate * g for p, g in zip((weight, bias), gradients, strict=True))
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        expected.append(loss.item())
    assert list(test.losses) == pytest.approx(expected, rel=1e-5)
    assert test.rates[-1] == pytest.approx(1.0)


def test_the_loss_is_that_of_features_too() -> None:
    torch.manual_seed(0)
    model, teacher = (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)) for _ in range(2))
    settings = replace(PLAIN, smoothing=0.0, distill_loss_weight=0.0, feature_loss_weight=0.5)
    loaders = batches(3)
    images, labels = loaders.train[0]
    wanted, got = teacher[0](images), model[0](images)
    features = ((got - wanted) ** 2).mean() / wanted.var(correction=0)
    expected = nn.functional.cross_entropy(model(images), labels) + 0.5 * features
    test = run(model, loaders, settings, teacher=teacher, feature_points=("0",))
    assert test.losses[0] == pytest.approx(expected.item(), rel=1e-5)


def test_the_model_is_left_as_it_was(make_vit: Callable[..., VisionTransformer]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    run(model, batches(5), replace(PLAIN, opt="adamw", model_ema=True))
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_no_longer_than_asked_for() -> None:
    assert len(run(nn.Linear(6, 4), batches(9), steps=4).rates) == 4


def test_accumulated_micro_batches_are_one_step() -> None:
    assert len(run(nn.Linear(6, 4), batches(9), replace(PLAIN, grad_accum_steps=3)).rates) == 3


def test_a_lower_layer_gets_its_share_of_the_rate(make_vit: Callable[..., VisionTransformer]) -> None:
    def seen(layer_decay: float | None) -> Any:
        images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        loaders = Loaders(train=[(images, torch.tensor([0, 1]))] * 4, val=[])
        settings = replace(PLAIN, layer_decay=layer_decay)
        return run_rate_test(make_vit(), loaders, settings=settings, num_classes=3, device=CPU).losses

    assert seen(0.5)[0] == seen(None)[0]
    assert seen(0.5)[-1] > seen(None)[-1]


class Explodes(nn.Module):
    """Gives a loss that is not a number from its third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.head(images) * (math.nan if self.calls > 2 else 1.0)


def test_a_trainer_that_gives_up_ends_the_test() -> None:
    test = run(Explodes(), batches(6))
    assert len(test.losses) == 2
    assert "not finite" in test.ended
