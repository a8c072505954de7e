"""The processes of a distributed launch, and what they do together; without a launch there is only one."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_launched() -> bool:
    """Whether `accelerate launch` or `torchrun` started several processes, told by what they set."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _is_initialised() else 1


def process_index() -> int:
    """Which of them this is, from 0; the launcher tells it before they have found each other."""
    return dist.get_rank() if _is_initialised() else int(os.environ["RANK"]) if is_launched() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and talks."""
    return process_index() == 0


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if _is_initialised():
        dist.barrier()


def sum_over_processes_(values: Tensor) -> Tensor:
    """Adds up a tensor in place over all processes; nothing to do for one process, or for no values."""
    if _is_initialised() and values.numel():
        dist.all_reduce(values)
    return values


def max_over_processes_(values: Tensor) -> Tensor:
    """Takes the largest of all processes in place, value by value; nothing to do for one process, or for no values."""
    if _is_initialised() and values.numel():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gather_over_processes(value: T) -> list[T]:
    """Returns every process's value, in the order of processes; it must be picklable, and all must ask together."""
    if not _is_initialised():
        return [value]
    found: list[T] = [value] * process_count()
    dist.all_gather_object(found, value)
    return found


@torch.no_grad()
def broadcast_from_main_(tensors: Iterable[Tensor]) -> None:
    """Gives every process the main one's values, in place; nothing to do for one process."""
    for tensor in tensors if _is_initialised() else ():
        dense = tensor.contiguous()  # which is all that every backend sends
        dist.broadcast(dense, src=0)
        if dense is not tensor:
            tensor.copy_(dense)


@contextmanager
def main_first() -> Iterator[bool]:
    """Runs the body in the main process while the others wait, then in them; yields whether this is the main one."""
    if not is_main():
        wait_for_all()
    yield is_main()
    if is_main():
        wait_for_all()


def _is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
