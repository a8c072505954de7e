"""What is not finite in a step, and where it came from, in one sentence that all processes agree on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one process saw: its loss, the norm of its gradient where it knows one, and a cause if it found any."""

    loss: float
    norm: float | None
    cause: str | None


def verdict(findings: Sequence[Finding]) -> str:
    """Says what is not finite and why, such as "the loss is nan on rank 1, so training cannot go on; the images: ...".

    A bad loss is told before a bad gradient, and a process that knows a cause before one that does not: averaging over
    processes carries one's fault to all.

    Args:
        findings: of every process, in their order; something in them is not finite.
    """
    losses = [rank for rank, found in enumerate(findings) if not math.isfinite(found.loss)]
    norms = [rank for rank, found in enumerate(findings) if found.norm is not None and not math.isfinite(found.norm)]
    rank = min(losses or norms, key=lambda rank: findings[rank].cause is None)
    what = f"the loss is {findings[rank].loss}" if losses else f"the norm of the gradient is {findings[rank].norm}"
    where = f" on rank {rank}" if len(findings) > 1 else ""
    cause = next((found.cause for found in (findings[rank], *findings) if found.cause), None)
    return f"{what}{where}, so training cannot go on" + (f"; {cause}" if cause else "")
