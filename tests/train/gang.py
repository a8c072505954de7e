"""Forks a few gloo processes that run a function together, without importing anything anew."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from accelerate.state import AcceleratorState

# Autograd decides at its first backward whether it needs threads, which forbid forks. Fake tensors make torch believe
# in a GPU that needs one: a test of such would do so to all that come after. So the first backward is here.
torch.zeros(1, requires_grad=True).sum().backward()


def together(work: Callable[[], Any], *, processes: int = 2) -> list[Any]:
    """Runs `work` in every process of a launch; returns what each gives, which must be picklable, or its traceback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = []
    for i in range(processes):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(work, i, processes, port, there), daemon=True)
        process.start()
        started.append((process, here))
    found = []
    for process, pipe in started:
        found.append(pickle.loads(pipe.recv_bytes()) if pipe.poll(120) else "this process hangs")
        process.kill()
        process.join()
    return found


def _run(work: Callable[[], Any], process: int, processes: int, port: int, pipe: Connection) -> None:
    os.environ.update(RANK=str(process), LOCAL_RANK=str(process), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)  # as forked loaders do: the threads of before are not here
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.distributed.init_process_group("gloo")
    try:
        # By hand: a connection's own pickling shares tensors, which are gone with the process.
        sent = pickle.dumps(work())
    except BaseException:
        sent = pickle.dumps(traceback.format_exc())
    pipe.send_bytes(sent)
