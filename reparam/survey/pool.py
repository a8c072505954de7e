"""Work in processes of its own, one per task, bounded in time and memory: what one task does to itself harms no other.

The processes fork from a server that has imported torch and timm once (0.03 s each instead of 4 s) and runs no threads.
They end with their parent, whatever ends it.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

T = TypeVar("T")
Report = Callable[[str], None]
#: What a task's process runs: the last text that it reports is the task's result.
Work = Callable[[T, Report], None]
_PRELOADED = "reparam.survey.examine"
#: Words with which torch and Python say that the memory bound was met.
_MEMORY_WORDS = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "std::bad_alloc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one task may use: seconds of wall clock, and bytes of memory where the system can bound it (Linux)."""

    seconds: float
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending(Generic[T]):
    """How one task ended: the last text it reported, and what cut it short if anything did."""

    task: T
    text: str | None
    fault: str | None
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Running(Generic[T]):
    task: T
    process: BaseProcess
    pipe: Connection
    started: float
    text: str | None = None
    fault: str | None = None
    has_closed: bool = False


def run_bounded(tasks: Iterable[T], work: Work[T], *, jobs: int, bounds: Bounds) -> Iterator[Ending[T]]:
    """Yields the ending of each task as it comes, `jobs` at a time; leaving early ends the tasks that still run.

    Args:
        tasks: picklable descriptions of the work.
        work: a function at the top of a module; it runs in the child.
        jobs: how many processes at once.
        bounds: of each task.
    """
    start_server()
    context = _context()
    waiting = iter(tasks)
    running: list[_Running[T]] = []
    try:
        while True:
            for task in _take(waiting, jobs - len(running)):
                running.append(_start(context, task, work, bounds))
            if not running:
                return
            for ended in _step(running, bounds):
                running.remove(ended)
                yield _ending(ended)
    finally:
        for left in running:
            _end(left)


def start_server() -> None:
    """Begins to import torch and timm in the server, beside whatever the caller imports meanwhile.

    The server ignores Ctrl-C from its first moment: it goes to the whole group of processes, and the caller's answer
    to it is what counts.
    """
    from multiprocessing import forkserver  # absent from platforms that cannot fork

    _context()
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        forkserver.ensure_running()
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)


def describe(error: BaseException) -> str:
    """An exception as one line; one that a memory bound caused says so first."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return f"out of memory: {text or type(error).__name__}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _context() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    return context


def _take(waiting: Iterator[T], count: int) -> Iterator[T]:
    for _ in range(count):
        try:
            yield next(waiting)
        except StopIteration:
            return


def _start(context: ForkServerContext, task: T, work: Work[T], bounds: Bounds) -> _Running[T]:
    pipe, far_end = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(task, work, far_end, bounds.memory), daemon=True)
    process.start()
    far_end.close()
    return _Running(task=task, process=process, pipe=pipe, started=time.monotonic())


def _step(running: list[_Running[T]], bounds: Bounds) -> list[_Running[T]]:
    """Waits for the next report, end or deadline, and returns the tasks that ended."""
    deadline = min(r.started for r in running) + bounds.seconds
    connection.wait([r.pipe for r in running], timeout=max(0.0, deadline - time.monotonic()))
    for r in running:
        _read(r)
        if not r.has_closed and time.monotonic() - r.started > bounds.seconds:
            r.fault = f"timed out after {bounds.seconds:g} s"
    return [r for r in running if r.has_closed or r.fault]


def _read(r: _Running[T]) -> None:
    """Takes what the child has reported, and notes when its end of the pipe is closed."""
    try:
        while r.pipe.poll():
            kind, text = r.pipe.recv()
            if kind == "fault":
                r.fault = text
            else:
                r.text = text
    except EOFError:
        r.has_closed = True


def _ending(r: _Running[T]) -> Ending[T]:
    seconds = time.monotonic() - r.started
    _end(r)
    code = r.process.exitcode
    if r.fault is None and code:
        r.fault = f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process exited with {code}"
    return Ending(task=r.task, text=r.text, fault=r.fault, seconds=seconds)


def _end(r: _Running[T]) -> None:
    """Collects the process; one that has not closed its pipe is still at work and is killed."""
    if not r.has_closed:
        r.process.kill()
    r.process.join()
    r.pipe.close()


def _child(task: T, work: Work[T], pipe: Connection, memory: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of Ctrl-C and ends its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _share_no_lock()
    _bound_memory(memory)
    sys.stdout = sys.stderr  # results go through the pipe alone
    warnings.simplefilter("ignore")  # what timm says of its own models is not what is examined here
    try:
        work(task, lambda text: pipe.send(("text", text)))
    except Exception as error:  # whatever it is, it is this task's ending and nobody else's
        _lift_memory_bound()  # telling takes memory too
        pipe.send(("fault", describe(error)))
    pipe.close()


def _share_no_lock() -> None:
    """Gives tqdm, which torch.fx counts with, a lock of this process: one between processes outlives a killed child."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # huggingface_hub brings it

    tqdm.set_lock(threading.RLock())


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _bound_memory(memory: int) -> None:
    with contextlib.suppress(ImportError):
        import resource  # Unix only

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (max(1, memory), hard))  # Linux takes 0 for no bound


def _lift_memory_bound() -> None:
    with contextlib.suppress(ImportError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
