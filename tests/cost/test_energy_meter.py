"""Energy with a monitor that stands in for zeus, on a machine without counters."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from reparam.cost import energy_meter
from reparam.cost.energy_meter import NoMeter, measure_energy, open_meter

CPU = torch.device("cpu")


class Monitor:
    """Counts 6 J for each run of the CPU's package and 2 J for its memory."""

    cpu_indices = (0,)
    made: ClassVar[list[Any]] = []

    def __init__(self, *, gpu_indices: list[int]) -> None:
        self.gpu_indices, self.runs, self.open = gpu_indices, 0, False
        self.made.append(self)

    def begin_window(self, name: str) -> None:
        self.open, self.runs = True, 0

    def end_window(self, name: str) -> SimpleNamespace:
        self.open = False
        return SimpleNamespace(
            time=1.5, cpu_energy={0: 6.0 * self.runs}, dram_energy={0: 2.0 * self.runs}, gpu_energy={}
        )

    def run(self) -> None:
        assert self.open
        self.runs += 1


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a machine's counters would be, and zeus, whose monitor is the stand-in."""
    zeus: Any = ModuleType("zeus")
    zeus.__spec__, zeus.__path__ = SimpleNamespace(name="zeus"), []
    monitor: Any = ModuleType("zeus.monitor")
    monitor.ZeusMonitor = Monitor
    monkeypatch.setitem(sys.modules, "zeus", zeus)
    monkeypatch.setitem(sys.modules, "zeus.monitor", monitor)
    monkeypatch.setattr(energy_meter, "_POWERCAP", tmp_path)
    monkeypatch.setattr(Monitor, "made", [])
    return tmp_path


def test_energy_per_image_is_that_of_the_window_over_the_images_in_it(machine: Path) -> None:
    (machine / "intel-rapl:0").mkdir()
    meter = open_meter(CPU)
    (monitor,) = Monitor.made
    energy = measure_energy(monitor.run, meter, run_ms=300.0, batch_size=4, seconds=1.0)
    assert (energy.images, energy.seconds) == (4 * 4, 1.5)  # four runs of 300 ms are needed for a second
    assert energy.joules == {"cpu package 0": 6.0 / 4, "dram 0": 2.0 / 4}
    assert monitor.gpu_indices == []


def test_a_machine_without_counters_says_so_and_zeus_is_not_imported(machine: Path) -> None:
    with pytest.raises(NoMeter, match=r"^no RAPL or NVML here$"):
        open_meter(CPU)
    assert Monitor.made == []


def test_a_machine_with_counters_says_what_to_install(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "intel-rapl").mkdir()
    monkeypatch.setattr(energy_meter.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoMeter, match=r'zeus is not installed: pip install "reparam\[energy\]"'):
        open_meter(CPU)


def test_counters_that_may_not_be_read_are_no_counters(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "intel-rapl").mkdir()
    monkeypatch.setattr(Monitor, "cpu_indices", ())
    with pytest.raises(NoMeter, match="want root, or zeusd"):
        open_meter(CPU)
