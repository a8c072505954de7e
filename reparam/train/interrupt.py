"""Ctrl-C and SIGTERM at a place where the work can be put down: between two steps, with the state kept."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from reparam.processes import process_count

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Context manager that turns the first signal into a wish (`is_asked`); a second one ends at once.

    Several processes are not signalled between the same two steps, and a thread gets no signals: both are left alone.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
