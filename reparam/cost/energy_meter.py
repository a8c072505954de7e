"""Energy that was measured here, by the counters of a CPU's packages (RAPL) and an NVIDIA GPU (NVML), through zeus.

A counter knows no processes: it counts what its whole package or board took meanwhile, idle power and other work
included. So it is measured apart from the latencies, on one run after the other for some seconds.
"""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from reparam.recipe.schema import Frozen

#: Counters move in steps of up to a tenth of a second.
_SECONDS = 2.0
_POWERCAP = Path("/sys/class/powercap")


class MeasuredEnergy(Frozen):
    """Joules per image by counter ("cpu package 0", "dram 0", "gpu 0"), over `images` images in `seconds` seconds."""

    joules: dict[str, float]
    images: int
    seconds: float

    @property
    def total(self) -> float:
        """Joules per image, all counters together."""
        return sum(self.joules.values())


class NoMeter(Exception):
    """Why energy is not measured here."""


class EnergyMeter(Protocol):
    """What counts energy; any object with these methods will do."""

    def begin(self) -> None:
        """Begins a window, when the device has done what it was given."""

    def end(self) -> tuple[float, dict[str, float]]:
        """Ends it when the device has done what it was given; returns its seconds, and joules by counter."""
        ...


class ZeusMeter:
    """The packages of the CPU and their memory, and the GPU if the model is on one."""

    def __init__(self, device: torch.device) -> None:
        from zeus.monitor import ZeusMonitor

        gpus = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
        self._monitor = ZeusMonitor(gpu_indices=gpus)
        if not gpus and not self._monitor.cpu_indices:
            raise NoMeter("the counters of the CPU (RAPL) cannot be read; they want root, or zeusd")

    def begin(self) -> None:
        """Begins a window."""
        self._monitor.begin_window("reparam")

    def end(self) -> tuple[float, dict[str, float]]:
        """Ends the window."""
        window = self._monitor.end_window("reparam")
        sources = {"cpu package": window.cpu_energy, "dram": window.dram_energy, "gpu": window.gpu_energy}
        joules = {f"{name} {index}": n for name, counted in sources.items() for index, n in (counted or {}).items()}
        return window.time, joules


def open_meter(device: torch.device) -> EnergyMeter:
    """Returns what measures energy on this machine.

    Raises:
        NoMeter: there are no counters, they may not be read, or zeus is not installed.
    """
    if device.type != "cuda" and not any(_POWERCAP.glob("intel-rapl*")):
        raise NoMeter("no RAPL or NVML here")
    if importlib.util.find_spec("zeus") is None:
        raise NoMeter('zeus is not installed: pip install "reparam[energy]"')
    return ZeusMeter(device)


def measure_energy(
    run: Callable[[], object], meter: EnergyMeter, *, run_ms: float, batch_size: int, seconds: float = _SECONDS
) -> MeasuredEnergy:
    """Measures energy over as many runs as last about `seconds`, at `run_ms` milliseconds each."""
    runs = math.ceil(seconds * 1e3 / run_ms)
    meter.begin()
    for _ in range(runs):
        run()
    took, joules = meter.end()
    images = runs * batch_size
    return MeasuredEnergy(joules={name: n / images for name, n in joules.items()}, images=images, seconds=took)
