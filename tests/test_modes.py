import pytest
import torch
from torch import Tensor, nn

from reparam.modes import evaluating


class Cached(nn.Linear):
    """Caches its weight in evaluation and drops it for training, as LeViT does with its attention biases."""

    cache: Tensor | None = None

    def train(self, mode: bool = True) -> "Cached":
        self.cache = None if mode else self.cache
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.cache is None:
            self.cache = self.weight.detach().clone()
        return x


class Silent(nn.Linear):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]  # some models' own returns nothing
        super().train(mode)


def model() -> nn.Module:
    made = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    made[0].eval()
    return made


def test_inside_all_modules_are_in_evaluation_and_afterwards_each_in_its_own_mode() -> None:
    made, other = model(), model()
    with evaluating(made, other):
        assert not any(module.training for one in (made, other) for module in one.modules())
    for one in (made, other):
        assert [module.training for module in one.modules()] == [True, False, True]


def test_the_modes_are_as_they_were_after_a_failure_too() -> None:
    made = model()
    with pytest.raises(RuntimeError), evaluating(made):
        raise RuntimeError
    assert [module.training for module in made.modules()] == [True, False, True]


def test_a_cache_of_weights_that_eval_fills_and_train_drops_is_not_left_behind() -> None:
    made = nn.Sequential(Cached(2, 2)).train()
    with evaluating(made):
        made(torch.ones(1, 2))
        assert made[0].cache is not None
    assert made[0].cache is None


def test_a_model_whose_train_returns_nothing_is_run_too() -> None:
    made = Silent(2, 2)
    with evaluating(made):
        assert not made.training
    assert made.training
