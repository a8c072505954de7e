"""Measures how long one forward takes here, with torch's own timer: warm-up, enough runs, median and spread."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reparam.recipe.schema import Frozen

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

#: Seconds spent measuring; torch's timer chooses how many runs fit.
_MIN_RUN_TIME = 0.5


class Latency(Frozen):
    """A latency that was measured here: median and interquartile range of `runs` forwards of one batch."""

    median_ms: float
    iqr_ms: float
    runs: int
    batch_size: int
    threads: int
    device: str
    dtype: str


def measure_latency(model: nn.Module, example_input: Tensor, *, min_run_time: float = _MIN_RUN_TIME) -> Latency:
    """Times eager inference of `model` on `example_input` (batch first); leaves every module in its mode.

    Args:
        model: on the device of `example_input`.
        example_input: one batch.
        min_run_time: seconds to spend.
    """
    threads = torch.get_num_threads()
    timer = timer_class()(
        "run(x)", globals={"run": torch.inference_mode()(model), "x": example_input}, num_threads=threads
    )
    with in_eval(model):
        timer.timeit(2)
        measured = timer.blocked_autorange(min_run_time=min_run_time)
    return Latency(
        median_ms=measured.median * 1e3,
        iqr_ms=measured.iqr * 1e3,
        runs=len(measured.times) * measured.number_per_run,
        batch_size=example_input.shape[0],
        threads=threads,
        device=device_name(example_input.device),
        dtype=str(example_input.dtype).removeprefix("torch."),
    )


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """A model in eval mode; afterwards every module is in its mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def timer_class() -> "type[Timer]":
    """torch's timer of small programs, which synchronises devices and fixes the number of threads."""
    # Imported here, and quietly: the import warns on machines that have a CUDA toolkit and no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    return Timer


def device_name(device: torch.device) -> str:
    """How reports call a device: the name of the GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
