"""A latency that was measured here, and what every measurement needs: threads, the device's name."""

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from reparam.recipe.schema import Frozen


class Latency(Frozen):
    """A latency that was measured here, of `runs` forwards of one batch in several rounds.

    Median and interquartile range are those of the rounds' means. `dtype` is that of weights and activations.
    """

    median_ms: float
    iqr_ms: float
    runs: int
    batch_size: int
    threads: int
    device: str
    dtype: str


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """torch with so many threads on the CPU; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hush_toolkit_search() -> None:
    """Keeps torch from warning, when it looks for a CUDA toolkit, that a machine which has one has no GPU."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def machine_name(device: torch.device) -> str:
    """The name of the GPU or of the processor, as the machine gives it."""
    if device.type == "cuda":
        return device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """How reports call a device: the name of the GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
