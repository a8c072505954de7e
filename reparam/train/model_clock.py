"""How fast the model alone is while something else, such as a loader, sets the pace."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ModelClock:
    """Adds up the time inside the model: wall clock on a CPU, events on CUDA, so that no batch is waited for.

    The first batch warms up and is left out where there are more.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images: list[int] = []
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, images: int) -> Iterator[None]:
        """Around one forward of so many images."""
        self._images.append(images)
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            yield
            end.record(stream)
            self._events.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - began)

    def images_per_second(self) -> float | None:
        """Images per second of all batches; None without any, and on devices whose work cannot be timed so.

        On CUDA the host must have waited for the last batch.
        """
        seconds = [start.elapsed_time(end) / 1e3 for start, end in self._events] or self._seconds
        if self._device.type not in ("cpu", "cuda") or not seconds:
            return None
        warm = slice(1 if len(seconds) > 1 else 0, None)
        return sum(self._images[warm]) / sum(seconds[warm])
