"""Golden values: what is kept, with which tolerance, and what it costs the model."""

import pytest
import torch
from torch import nn

from reparam.checkpoint.golden import GoldenInputError, check_golden, make_golden
from reparam.errors import CheckpointError
from reparam.models.inputs import InputSpec

IMAGE = (InputSpec(shape=(1, 3, 16, 16)),)


class Pool(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def test_the_values_are_the_heads_of_the_outputs_of_the_seeded_input():
    golden = make_golden(Pool(), IMAGE)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(golden.seed))
    assert torch.equal(torch.tensor(golden.logits), x.flatten(1)[:, :16])


def test_the_tolerance_grows_with_the_values_and_with_steps():
    class Step(nn.Module):
        def forward(self, x):
            return (x.flatten(1) * 1e6).round() / 10

    class Scaled(nn.Module):
        def forward(self, x):
            return x.flatten(1) * 1e3

    assert make_golden(Pool(), IMAGE).atol == pytest.approx(1e-4, rel=5)
    assert make_golden(Scaled(), IMAGE).atol > 100 * make_golden(Pool(), IMAGE).atol
    assert make_golden(Step(), IMAGE).atol >= 0.1


def test_a_model_that_takes_one_sample_at_a_time_is_given_one():
    class Single(nn.Module):
        def forward(self, x):
            assert x.shape[0] == 1
            return x.flatten(1)

    assert make_golden(Single(), IMAGE).input_shape == (1, 3, 16, 16)


@pytest.mark.parametrize("output", [None, "text", {}, [(), {"a": 1}]], ids=repr)
def test_a_model_that_returns_no_tensor_has_no_golden_values(output):
    class Mute(nn.Module):
        def forward(self, x):
            return output

    with pytest.raises(GoldenInputError, match="wanted a tensor"):
        make_golden(Mute(), IMAGE)


def test_a_model_of_not_a_numbers_agrees_with_itself_and_no_other():
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1) * float("nan")

    golden = make_golden(Broken(), IMAGE)
    check_golden(Broken(), golden, where="run")
    with pytest.raises(CheckpointError):
        check_golden(Pool(), golden, where="run")


def test_dropout_is_off_and_the_mode_comes_back():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(768, 4)).train()
    golden = make_golden(model, IMAGE)
    check_golden(model, golden, where="run")
    assert model.training
    assert model[1].training


def test_a_cache_of_weights_that_eval_fills_and_train_drops_is_not_left_behind():
    class Cached(nn.Linear):  # as LeViT caches its attention biases
        cache: torch.Tensor | None = None

        def train(self, mode: bool = True):
            self.cache = None if mode else self.cache
            return super().train(mode)

        def forward(self, x):
            if self.training:
                return super().forward(x)
            if self.cache is None:
                self.cache = self.weight.detach().clone()
            return x @ self.cache.T + self.bias

    model = nn.Sequential(nn.Flatten(), Cached(768, 4)).train()
    make_golden(model, IMAGE)
    nn.init.ones_(model[1].weight)
    assert torch.allclose(model.eval()(torch.ones(1, 3, 16, 16)), 768 + model[1].bias)
