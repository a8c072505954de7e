"""Measuring with baselines made for the test and a clock that only counts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.cost import measure
from reparam.cost.baselines.base import BASELINES, Baseline, Inapplicable, Run
from reparam.cost.measure import measure_batch
from reparam.cost.measurement import Measurement
from reparam.cost.rounds import Rounds
from reparam.cost.workload import Workload
from tests.pico import images

EAGER = BASELINES.get("eager")


class Watches(nn.Module):
    """Answers with a factor times its input, and notes in which mode it ran."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.modes: set[tuple[bool, bool, int]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        return self.factor * x


def baseline(name: str, prepare: Callable[[Workload], Run], *, in_torch: bool = False) -> Baseline:
    return Baseline(
        name=name, title=f"the {name}", dtype="int8", tolerance=0.1, in_torch=in_torch, prepare=prepare
    )  # fmt: skip


def scaled(factor: float) -> Callable[[Workload], Run]:
    return lambda dense: partial(torch.mul, dense.batch, factor)


def fails(dense: Workload) -> Run:
    raise RuntimeError("no compiler\nwas found " + "and so on " * 100)


def skips(dense: Workload) -> Run:
    raise Inapplicable("the engine is not installed")


def breaks_when_run(dense: Workload) -> Run:
    return partial(nn.Linear(1, 1), torch.ones(3, 3))


Timed = list[tuple[list[Any], dict[str, Any]]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """What was timed. The n-th run takes n ms; each is run once, as by a clock."""
    timed: Timed = []

    def time_in_turns(runs: Mapping[Any, Run], **options: Any) -> dict[Any, Rounds]:
        timed.append(([run() for run in runs.values()], options))
        return {key: Rounds(means_ms=(n, n, n + 2.0), runs=30) for n, key in enumerate(runs, start=1)}

    monkeypatch.setattr(measure, "time_in_turns", time_in_turns)
    return timed


def by_engine(measurements: tuple[Measurement, ...]) -> dict[tuple[str, str], Measurement]:
    return {(m.side, m.engine): m for m in measurements}


def test_both_models_and_all_baselines_are_timed_in_one_run(timed: Timed) -> None:
    chosen = [EAGER, baseline("half", scaled(2.1), in_torch=True)]
    found = measure_batch(
        images(4), converted=Watches(3.0), dense=Watches(2.0), baselines=chosen, threads=3, seconds=7.0
    )  # fmt: skip
    ((answers, options),) = timed
    assert [float(a.norm() / images(4).norm()) for a in answers] == pytest.approx([3.0, 2.0, 2.1])
    assert options == {"threads": 3, "seconds": 7.0}
    converted, eager, half = found
    assert [m.side for m in found] == ["converted", "dense", "dense"]
    assert converted.latency is not None
    assert (converted.latency.median_ms, converted.latency.iqr_ms, converted.latency.runs) == (1, 1, 30)
    assert (converted.latency.batch_size, converted.latency.threads, converted.latency.dtype) == (4, 3, "float32")
    assert converted.images_per_second == 4000
    assert (converted.error, eager.error, half.error) == (None, None, pytest.approx(0.05))
    assert half.latency is not None
    assert (half.latency.dtype, half.latency.median_ms, half.tolerance) == ("int8", 3, 0.1)
    assert converted.peak_bytes == pytest.approx(images(4).numel() * 4, rel=0.01)


def test_what_cannot_be_measured_stands_there_with_its_reason_and_the_others_are_measured(timed: Timed) -> None:
    chosen = [
        EAGER,
        baseline("absent", skips),
        baseline("broken", fails),
        baseline("brittle", breaks_when_run),
        baseline("other", scaled(2.5)),
        baseline("reshaped", lambda dense: lambda: dense.batch[:1]),
        baseline("good", scaled(2.0)),
    ]
    found = by_engine(measure_batch(images(), converted=None, dense=Watches(2.0), baselines=chosen, threads=1))
    assert {engine: m.status for (_, engine), m in found.items()} == {
        "eager": "measured",
        "absent": "skipped",
        "broken": "failed",
        "brittle": "failed",
        "other": "wrong",
        "reshaped": "wrong",
        "good": "measured",
    }
    assert found["dense", "absent"].reason == "the engine is not installed"
    reason = found["dense", "broken"].reason or ""
    assert reason.startswith("RuntimeError: no compiler was found and")
    assert len(reason) < 200
    assert "shape" in (found["dense", "brittle"].reason or "")
    wrong = found["dense", "other"]
    assert (wrong.error, wrong.tolerance) == (pytest.approx(0.25), 0.1)
    assert wrong.reason == "its outputs differ from eager's by 0.25 of their size, more than 0.1"
    assert found["dense", "reshaped"].error is None  # no number that JSON could not hold
    assert "other shapes" in (found["dense", "reshaped"].reason or "")
    for m in found.values():
        assert (m.latency is None) is (m.status != "measured"), m.engine
    ((answers, _),) = timed
    assert len(answers) == 2  # nobody waits for what computes something else


def test_models_run_in_evaluation_without_gradients_and_are_left_as_they_were(timed: Timed) -> None:
    converted, dense, threads = Watches(1.0).train(), Watches(1.0).train(), torch.get_num_threads()
    measure_batch(images(), converted=converted, dense=dense, baselines=[EAGER], threads=threads + 1)
    assert converted.modes == dense.modes == {(False, False, threads + 1)}
    assert converted.training
    assert dense.training
    assert torch.get_num_threads() == threads


def test_an_error_of_the_model_itself_is_raised_and_its_modes_are_as_they_were(timed: Timed) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure_batch(torch.zeros(2, 5), converted=None, dense=model, baselines=[EAGER], threads=1)
    assert all(module.training for module in model.modules())


def test_without_baselines_only_the_converted_model_runs(timed: Timed) -> None:
    dense = Watches(1.0)
    found = measure_batch(images(), converted=Watches(1.0), dense=dense, baselines=[], threads=1)
    assert list(by_engine(found)) == [("converted", "eager")]
    assert dense.modes == set()


def test_energy_is_measured_of_each_engine_where_there_is_a_meter(timed: Timed) -> None:
    class Meter:
        windows = 0

        def begin(self) -> None:
            self.windows += 1

        def end(self) -> tuple[float, dict[str, float]]:
            return 2.0, {"gpu 0": 4000.0}

    meter = Meter()
    chosen = [EAGER, baseline("absent", skips)]
    _, eager, absent = measure_batch(
        images(2), converted=Watches(1.0), dense=Watches(1.0), baselines=chosen, threads=1, meter=meter
    )  # fmt: skip
    assert meter.windows == 2
    assert eager.energy is not None
    assert eager.energy.joules == {"gpu 0": 4000.0 / eager.energy.images}
    assert eager.energy.images == 2 * 1000  # two seconds of 2 ms each
    assert absent.energy is None


def test_it_is_told_what_takes_long(timed: Timed) -> None:
    told: list[str] = []
    chosen = [EAGER, baseline("slow", scaled(1.0))]
    measure_batch(images(2), converted=None, dense=Watches(1.0), baselines=chosen, threads=1, tell=told.append)
    assert told == ["preparing the slow for batch 2", "timing batch 2"]


def test_a_converted_model_is_run_in_other_forms_too_and_compared_with_itself(timed: Timed) -> None:
    forms = [baseline("lowered", scaled(3.1)), baseline("spoilt", scaled(2.0))]
    found = by_engine(
        measure_batch(
            images(), converted=Watches(3.0), dense=Watches(2.0), baselines=[EAGER], threads=1, forms=forms
        )
    )  # fmt: skip
    assert {key: m.status for key, m in found.items()} == {
        ("converted", "eager"): "measured",
        ("converted", "lowered"): "measured",
        ("converted", "spoilt"): "wrong",
        ("dense", "eager"): "measured",
    }
    assert found["converted", "lowered"].error == pytest.approx(0.1 / 3)


def test_an_engine_that_is_too_slow_is_named_and_not_timed(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.25, 9.25, 9.75])
    monkeypatch.setattr(measure, "perf_counter", lambda: next(clock))
    chosen = [EAGER, baseline("snail", scaled(2.0)), baseline("hare", scaled(2.0))]
    found = by_engine(
        measure_batch(images(), converted=None, dense=Watches(2.0), baselines=chosen, threads=1, slowest_s=7.5)
    )
    snail = found["dense", "snail"]
    assert (snail.status, snail.latency, snail.error) == ("skipped", None, 0.0)
    assert snail.reason == "one run takes 9.25 s, and more than 7.5 s are not waited for"
    assert found["dense", "hare"].status == "measured"
