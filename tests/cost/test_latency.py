import pytest
import torch
from torch import Tensor, nn

from reparam.cost.latency import measure_latency
from tests.pico import cnn, images


def test_a_latency_says_where_how_often_and_on_what_it_was_measured() -> None:
    latency = measure_latency(cnn(), images(3), min_run_time=0.01)
    assert latency.median_ms > 0
    assert latency.iqr_ms >= 0
    assert latency.runs > 0
    assert (latency.batch_size, latency.threads) == (3, torch.get_num_threads())
    assert (latency.device, latency.dtype) == ("cpu", "float32")


class Watches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add((self.training, torch.is_grad_enabled()))
        return x


def test_it_runs_in_evaluation_without_gradients_and_leaves_every_mode_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), Watches(), nn.Dropout()).train()
    model[0].eval()
    measure_latency(model, images(), min_run_time=0.01)
    assert model[1].modes == {(False, False)}
    assert [m.training for m in model.modules()] == [True, False, True, True]
    assert model[0].num_batches_tracked == 0


def test_the_modes_are_as_they_were_after_a_failure_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).train()
    with pytest.raises(RuntimeError):
        measure_latency(model, torch.zeros(2, 5), min_run_time=0.01)
    assert all(module.training for module in model.modules())
