"""Running figures of an epoch, kept on the device and read only where they are shown: reading makes a device wait."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reparam.processes import process_count, sum_over_processes_
from reparam.train.objective import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Means over the images of some steps; a term that was off is None; `top1` in percent."""

    total: float
    task: float
    distill: float | None
    feature: float | None
    balance: float | None
    top1: float
    images: int


class Meter:
    """Collects the terms of micro-batches. `settle` reads what is new, `epoch` sums up everything since `clear`.

    Under a distributed launch every process calls both at the same step, and gets the figures of all images.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._pending: list[tuple[int, Tensor]] = []
        self._settled: list[tuple[int, list[float]]] = []

    def add(self, terms: Terms, *, correct: Tensor, images: int) -> None:
        """Takes the terms of one micro-batch of `images` images, `correct` (a scalar) of them right."""
        off = terms.total.new_full((), math.nan)
        parts = (terms.total, terms.task, terms.distill, terms.feature, terms.balance)
        row = [(off if part is None else part).detach().float() for part in parts]
        self._pending.append((images, torch.stack([*row, correct.float() / images])))

    def settle(self) -> Figures | None:
        """Reads what is new in one go and returns its means, or None when nothing is."""
        if not self._pending:
            return None
        count = process_count()
        rows = (sum_over_processes_(torch.stack([row for _, row in self._pending])) / count).tolist()
        fresh = [(images * count, row) for (images, _), row in zip(self._pending, rows, strict=True)]
        self._pending.clear()
        self._settled += fresh
        return _mean(fresh)

    def epoch(self) -> Figures | None:
        """Settles the rest and returns the means of everything, or None when there was nothing."""
        self.settle()
        return _mean(self._settled) if self._settled else None

    def state(self) -> list[Any]:
        """What was collected, as plain numbers."""
        self.settle()
        return [[images, row] for images, row in self._settled]

    def load_state(self, state: list[Any]) -> None:
        """Goes on from `state`."""
        self._pending, self._settled = [], [(images, list(row)) for images, row in state]


def _mean(rows: list[tuple[int, list[float]]]) -> Figures:
    """The mean over images; a term that is off is not a number in every row, and so is its mean."""
    images = sum(count for count, _ in rows)
    total, task, distill, feature, balance, right = (
        sum(count * row[i] for count, row in rows) / images for i in range(6)
    )
    return Figures(
        total=total,
        task=task,
        distill=None if math.isnan(distill) else distill,
        feature=None if math.isnan(feature) else feature,
        balance=None if math.isnan(balance) else balance,
        top1=100 * right,
        images=images,
    )
