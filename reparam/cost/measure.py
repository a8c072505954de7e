"""Measures a converted model and the baselines of its dense original on one batch, in turns.

Each engine is prepared, run twice, and its outputs are compared with those of the eager original; only those that agree
are timed.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor, nn

from reparam.cost.agreement import outputs_of, relative_error
from reparam.cost.baselines.base import BASELINES, REFERENCE, Baseline, Inapplicable, Run
from reparam.cost.energy_meter import EnergyMeter, measure_energy
from reparam.cost.latency import Latency, device_name, using_threads
from reparam.cost.measurement import Measurement, Side, Status
from reparam.cost.peak_memory import measure_peak_memory
from reparam.cost.rounds import Rounds, time_in_turns
from reparam.cost.workload import Workload
from reparam.modes import evaluating

#: Seconds for each engine and batch size.
_SECONDS = 2.0
#: The first line of some compilers' errors is a page.
_LONGEST_REASON = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entrant:
    """An engine that is ready to be timed, with its `run`; or what became of it."""

    side: Side
    baseline: Baseline
    status: Status = "measured"
    reason: str | None = None
    error: float | None = None
    run: Run | None = None


def measure_batch(
    batch: Tensor,
    *,
    converted: nn.Module | None,
    dense: nn.Module | None,
    baselines: Sequence[Baseline],
    threads: int,
    meter: EnergyMeter | None = None,
    tell: Callable[[str], None] = lambda text: None,
    seconds: float = _SECONDS,
    forms: Sequence[Baseline] = (),
    slowest_s: float = math.inf,
) -> tuple[Measurement, ...]:
    """Measures on one batch (B, ...); leaves every module in its mode.

    Args:
        batch: on the device of the models.
        converted: run eagerly, as it is, and by each of `forms`.
        dense: its original, or a model that is none's conversion; run by each of `baselines`.
        baselines: of the dense model, as `choose_baselines` gives them; outputs must agree with those of the eager one.
        threads: of the CPU, for torch and for other engines.
        meter: what counts energy, if anything does.
        tell: hears what is being done.
        seconds: for each engine; see `time_in_turns`.
        forms: ways to run the converted model, whose outputs must agree with its own eager ones.
        slowest_s: an engine whose single run takes longer than these seconds is not timed. The eager ones always are.
    """
    with using_threads(threads), ExitStack() as stack:
        entrants: list[_Entrant] = []
        if converted is not None:
            workload = _opened(converted, batch, threads=threads, stack=stack)
            entrants += _entrants("converted", workload, forms, tell, slowest_s=slowest_s)
        if dense is not None and baselines:
            workload = _opened(dense, batch, threads=threads, stack=stack)
            entrants += _entrants("dense", workload, baselines, tell, slowest_s=slowest_s)
        tell(f"timing batch {len(batch)}")
        running = {index: entrant.run for index, entrant in enumerate(entrants) if entrant.run is not None}
        rounds = time_in_turns(running, threads=threads, seconds=seconds)
        return tuple(
            _measurement(entrant, rounds.get(index), batch, threads=threads, meter=meter)
            for index, entrant in enumerate(entrants)
        )


def _opened(model: nn.Module, batch: Tensor, *, threads: int, stack: ExitStack) -> Workload:
    stack.enter_context(evaluating(model))
    return stack.enter_context(Workload(model, batch, threads=threads))


def _entrants(
    side: Side, workload: Workload, baselines: Sequence[Baseline], tell: Callable[[str], None], *, slowest_s: float
) -> list[_Entrant]:
    eager = _eager(side, workload)
    assert eager.run is not None
    others = [baseline for baseline in baselines if baseline.name != REFERENCE]
    entrants, wanted = [eager], outputs_of(eager.run()) if others else []
    for baseline in others:
        tell(f"preparing {baseline.title} for batch {len(workload.batch)}")
        entrants.append(_checked(_Entrant(side=side, baseline=baseline), workload, wanted, slowest_s=slowest_s))
    return entrants


def _eager(side: Side, workload: Workload) -> _Entrant:
    """What runs as it is written; an error in it is the model's own."""
    baseline = BASELINES.get(REFERENCE)
    return _Entrant(side=side, baseline=baseline, run=_prepared(baseline, workload))


def _checked(tried: _Entrant, workload: Workload, wanted: list[Tensor], *, slowest_s: float) -> _Entrant:
    baseline = tried.baseline
    try:
        run = _prepared(baseline, workload)
        run()  # the answer of the second run counts: some engines only record or tune in their first
        began = perf_counter()
        error = relative_error(outputs_of(run()), wanted)
        took = perf_counter() - began
    except Inapplicable as why:
        return replace(tried, status="skipped", reason=str(why))
    except Exception as failure:
        return replace(tried, status="failed", reason=_one_line(failure))
    if not math.isfinite(error):
        return replace(tried, status="wrong", reason="its outputs have other shapes than eager's, or are not finite")
    if error > baseline.tolerance:
        reason = f"its outputs differ from eager's by {error:.2g} of their size, more than {baseline.tolerance:g}"
        return replace(tried, status="wrong", reason=reason, error=error)
    if took > slowest_s:
        reason = f"one run takes {took:.3g} s, and more than {slowest_s:.3g} s are not waited for"
        return replace(tried, status="skipped", reason=reason, error=error)
    return replace(tried, error=error, run=run)


def _prepared(baseline: Baseline, workload: Workload) -> Run:
    run: Run = torch.inference_mode()(baseline.prepare(workload))
    return run


def _one_line(failure: Exception) -> str:
    words = " ".join(f"{type(failure).__name__}: {failure}".split())
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]} ..."


def _measurement(
    entrant: _Entrant, rounds: Rounds | None, batch: Tensor, *, threads: int, meter: EnergyMeter | None
) -> Measurement:
    baseline = entrant.baseline
    record = Measurement(
        side=entrant.side,
        engine=baseline.name,
        title=baseline.title,
        batch_size=len(batch),
        status=entrant.status,
        reason=entrant.reason,
        error=entrant.error,
        tolerance=None if entrant.error is None else baseline.tolerance,
    )
    if rounds is None or entrant.run is None:
        return record
    latency = Latency(
        median_ms=rounds.median_ms,
        iqr_ms=rounds.iqr_ms,
        runs=rounds.runs,
        batch_size=len(batch),
        threads=threads,
        device=device_name(batch.device),
        dtype=baseline.dtype,
    )
    figures = {
        "latency": latency,
        "images_per_second": len(batch) * 1e3 / latency.median_ms,
        "peak_bytes": measure_peak_memory(entrant.run, batch.device) if baseline.in_torch else None,
        "energy": meter and measure_energy(entrant.run, meter, run_ms=latency.median_ms, batch_size=len(batch)),
    }
    return record.model_copy(update=figures)
