"""What `reparam.profile` measures: which batch sizes, baselines and threads, and all figures of one run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from reparam.cost.baselines.base import REFERENCE, Baseline, choose_baselines
from reparam.cost.energy_meter import EnergyMeter, NoMeter, open_meter
from reparam.cost.expert_latency import measure_experts
from reparam.cost.expert_schedule import ExpertSchedule, Shares, balanced_shares, routed_shares, schedule
from reparam.cost.latency import Latency, machine_name, using_threads
from reparam.cost.measure import measure_batch
from reparam.cost.measurement import Measured, Measurement, Side, compare
from reparam.errors import OptionError

#: The thread library ends the whole process where the system gives it no more.
_MOST_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How to measure: images per forward, each size in rounds of its own; baselines of the dense model; threads."""

    batch_sizes: tuple[int, ...]
    baselines: tuple[Baseline, ...]
    threads: int

    @classmethod
    def checked(cls, batch_size: int | Sequence[int], baselines: str | Sequence[str], threads: int | None) -> Self:
        """Reads what a user asked for; threads are by default those of torch.

        Raises:
            OptionError: a batch size or a number of threads below 1, more threads than 1024, no batch size, or
                an unknown baseline.
        """
        sizes = tuple(dict.fromkeys([batch_size] if isinstance(batch_size, int) else batch_size))
        for name, numbers in (("batch size", sizes), ("threads", () if threads is None else (threads,))):
            for number in numbers:
                if number < 1:
                    raise OptionError(f"{name} {number}: wanted 1 or more")
        if threads is not None and threads > _MOST_THREADS:
            raise OptionError(f"threads {threads}: wanted {_MOST_THREADS} or fewer")
        if not sizes:
            raise OptionError("no batch size to measure; name one, such as 1")
        names = baselines.split(",") if isinstance(baselines, str) else baselines
        return cls(
            batch_sizes=sizes,
            baselines=choose_baselines([name.strip() for name in names]),
            threads=torch.get_num_threads() if threads is None else threads,
        )


def measure_models(
    batches: Sequence[Tensor],
    how: Measuring,
    *,
    converted: nn.Module | None,
    dense: nn.Module | None,
    evaluated: Mapping[str, float],
    tell: Callable[[str], None],
) -> Measured:
    """Measures a converted model, its dense original, or both, on each batch.

    Args:
        batches: on the device of the models.
        how: baselines and threads.
        converted: its mixtures are also modelled with parallel experts.
        dense: run by the baselines; where there is nothing else, eagerly at least.
        evaluated: share of tokens that each router multiplied in the evaluation on record.
        tell: hears what is being done.
    """
    device = batches[0].device
    meter, no_energy = _meter(device)
    measurements: list[Measurement] = []
    comparisons, schedules = [], list[ExpertSchedule]()
    baselines = how.baselines or (() if converted is not None else choose_baselines([REFERENCE]))
    for batch in batches:
        found = measure_batch(
            batch,
            converted=converted,
            dense=dense,
            baselines=baselines,
            threads=how.threads,
            meter=meter,
            tell=tell,
        )
        measurements += found
        comparisons.append(compare(found))
        latency = latency_of(found, "converted")
        if converted is not None and latency is not None:
            schedules += _schedules(converted, batch, latency, threads=how.threads, evaluated=evaluated)
    return Measured(
        machine=machine_name(device),
        threads=how.threads,
        torch=str(torch.__version__),
        measurements=tuple(measurements),
        comparisons=tuple(comparison for comparison in comparisons if comparison is not None),
        schedules=tuple(schedules),
        no_energy=no_energy,
    )


def latency_of(measurements: Sequence[Measurement], side: Side) -> Latency | None:
    """Latency of the converted or of the dense model as it runs eagerly, at the first batch size."""
    return next((m.latency for m in measurements if (m.side, m.engine) == (side, REFERENCE)), None)


def _meter(device: torch.device) -> tuple[EnergyMeter | None, str | None]:
    try:
        return open_meter(device), None
    except NoMeter as reason:
        return None, str(reason)


def _schedules(
    model: nn.Module, batch: Tensor, latency: Latency, *, threads: int, evaluated: Mapping[str, float]
) -> tuple[ExpertSchedule, ...]:
    with using_threads(threads):
        experts = measure_experts(model, batch)
        if not experts:
            return ()
        routed = routed_shares(model, batch)
    wanted: dict[Shares, Mapping[str, float]] = {"evaluated": evaluated, "balanced": balanced_shares(model)}
    return schedule(latency.median_ms, experts, routed=routed, wanted=wanted)
