"""Measures how long one forward takes here, with torch's own timer: warm-up, enough runs, median and spread."""

import logging
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
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    threads = torch.get_num_threads()
    timer = _timer_class()(
        "run(x)", globals={"run": torch.inference_mode()(model), "x": example_input}, num_threads=threads
    )
    try:
        timer.timeit(2)
        measured = timer.blocked_autorange(min_run_time=min_run_time)
    finally:
        for module, training in modes:
            module.training = training
    return Latency(
        median_ms=measured.median * 1e3,
        iqr_ms=measured.iqr * 1e3,
        runs=len(measured.times) * measured.number_per_run,
        batch_size=example_input.shape[0],
        threads=threads,
        device=_device_name(example_input.device),
        dtype=str(example_input.dtype).removeprefix("torch."),
    )


def _timer_class() -> "type[Timer]":
    # Imported here, and quietly: the import warns on machines that have a CUDA toolkit and no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    return Timer


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
