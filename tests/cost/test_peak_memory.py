"""Peak memory against sums of tensors that are known by hand."""

import torch
from torch import Tensor, nn

from reparam.cost.peak_memory import measure_peak_memory

CPU = torch.device("cpu")
FLOATS = 4


def test_the_peak_is_what_lives_at_the_same_time_and_not_all_that_was_allocated() -> None:
    def one_after_the_other() -> Tensor:
        for _ in range(5):
            torch.ones(1000)
        return torch.ones(10)

    def at_the_same_time() -> list[Tensor]:
        return [torch.ones(1000) for _ in range(5)]

    assert measure_peak_memory(one_after_the_other, CPU) == 1000 * FLOATS
    assert measure_peak_memory(at_the_same_time, CPU) == 5000 * FLOATS


def test_weights_and_input_are_not_in_it_and_activations_are() -> None:
    model, x = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 10)), torch.ones(8, 10)
    run = torch.inference_mode()(lambda: model(x))
    run()
    assert measure_peak_memory(run, CPU) == 2 * 8 * 1000 * FLOATS  # the input and the output of ReLU


def test_it_is_the_same_every_time() -> None:
    model, x = nn.Linear(10, 10), torch.ones(8, 10)
    assert len({measure_peak_memory(lambda: model(x), CPU) for _ in range(3)}) == 1
