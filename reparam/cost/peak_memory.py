"""The peak memory of one forward: what torch allocates at most at one time, beyond the weights and the input.

On CUDA it is torch's own peak, on a CPU the greatest sum of the profiler's records of allocations and releases; both
are bytes of torch's allocator, exact, and the same in every run. What a library takes by itself is in neither: code,
threads, and scratch memory that does not come from torch. The peak of a process's resident memory has all of that, and
the memory that earlier runs left behind too.
"""

import os
from collections.abc import Callable

import torch


def measure_peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes at the peak of one run; it should have run before, so that what is made once is not counted."""
    return _on_cuda(run, device) if device.type == "cuda" else _on_cpu(run)


def _on_cuda(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(run: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would complain on stderr that there is no GPU
    with torch.autograd.profiler.profile(profile_memory=True) as profiled:
        run()
    results = profiled.kineto_results
    assert results is not None
    records = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for record in sorted(records, key=lambda event: event.start_ns()):
        now += record.nbytes()
        peak = max(peak, now)
    return peak
