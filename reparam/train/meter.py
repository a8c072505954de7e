"""Running figures of an epoch, kept on the device and read only where they are shown: reading makes a device wait."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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


class NotFiniteError(ArithmeticError):
    """A loss that is not a finite number; `update` is the optimiser step, `value` the loss."""

    def __init__(self, update: int, value: float) -> None:
        super().__init__(f"loss {value} in update {update}")
        self.update, self.value = update, value


class Meter:
    """Collects the terms of micro-batches. `settle` reads what is new, `epoch` sums up everything since `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._pending: list[tuple[int, int, Tensor]] = []
        self._settled: list[tuple[int, list[float]]] = []

    def add(self, terms: Terms, *, correct: Tensor, images: int, update: int) -> None:
        """Takes the terms of one micro-batch of `images` images, `correct` (a scalar) of them right."""
        off = terms.total.new_full((), math.nan)
        parts = (terms.total, terms.task, terms.distill, terms.feature, terms.balance)
        row = [(off if part is None else part).detach().float() for part in parts]
        self._pending.append((update, images, torch.stack([*row, correct.float()])))

    def settle(self) -> Figures | None:
        """Reads what is new in one go and returns its means, or None when nothing is.

        Raises:
            NotFiniteError: a total is infinite or not a number.
        """
        if not self._pending:
            return None
        rows = torch.stack([row for _, _, row in self._pending]).tolist()
        for (update, _, _), row in zip(self._pending, rows, strict=True):
            if not math.isfinite(row[0]):
                raise NotFiniteError(update, row[0])
        fresh = [(images, row) for (_, images, _), row in zip(self._pending, rows, strict=True)]
        self._pending.clear()
        self._settled += fresh
        return _mean(fresh)

    def epoch(self) -> Figures | None:
        """Settles the rest and returns the means of everything, or None when there was nothing; raises as `settle`."""
        self.settle()
        return _mean(self._settled) if self._settled else None


def _mean(rows: list[tuple[int, list[float]]]) -> Figures:
    """The mean over images; a term that is off is not a number in every row, and so is its mean."""
    images = sum(count for count, _ in rows)
    total, task, distill, feature, balance = (sum(count * row[i] for count, row in rows) / images for i in range(5))
    return Figures(
        total=total,
        task=task,
        distill=None if math.isnan(distill) else distill,
        feature=None if math.isnan(feature) else feature,
        balance=None if math.isnan(balance) else balance,
        top1=100 * sum(row[5] for _, row in rows) / images,
        images=images,
    )
