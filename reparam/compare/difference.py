"""Differences of two models' tensors, added up over batches so that no more than one batch is held."""

import math

import torch
from torch import Tensor

from reparam.compare.recording import Recording
from reparam.compare.records import Difference, Verification
from reparam.errors import ModelError


class Running:
    """Sums over pairs of tensors, a of the reference and b of the other: enough for every figure of a `Difference`."""

    def __init__(self) -> None:
        self._count, self._largest, self._squared = 0, 0.0, 0.0
        self._a, self._b, self._aa, self._bb, self._ab = 0.0, 0.0, 0.0, 0.0, 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Takes two tensors of one shape."""
        a, b = a.detach().double().flatten(), b.detach().double().flatten()
        difference = torch.where(a == b, 0.0, b - a)  # equal infinities do not differ
        self._count += len(a)
        self._largest = _larger(self._largest, difference.abs().max().item() if len(a) else 0.0)
        self._squared += float(difference @ difference)
        self._a, self._b = self._a + float(a.sum()), self._b + float(b.sum())
        self._aa, self._bb, self._ab = self._aa + float(a @ a), self._bb + float(b @ b), self._ab + float(a @ b)

    def difference(self, path: str) -> Difference:
        """The figures of all pairs so far."""
        return Difference(
            path=path,
            relative_error=_finite(self._relative()),
            max_abs_error=_finite(self._largest),
            correlation=_finite(self._correlation()),
        )

    def _relative(self) -> float:
        if self._squared == 0:
            return 0.0
        return math.sqrt(self._squared / self._aa) if self._aa else math.inf

    def _correlation(self) -> float:
        if not self._count:
            return math.nan
        of_a = self._aa - self._a * self._a / self._count
        of_b = self._bb - self._b * self._b / self._count
        both = self._ab - self._a * self._b / self._count
        return both / math.sqrt(of_a * of_b) if of_a > 0 and of_b > 0 else math.nan


class Comparison:
    """What two models, A and B, computed on the batches so far."""

    def __init__(self, a: str, b: str) -> None:
        self._names = a, b
        self._outputs, self._layers, self._uncompared = Running(), dict[str, Running](), dict[str, None]()
        self._images = self._same = 0

    def add(self, a: Recording, b: Recording) -> None:
        """Takes what both computed on one batch.

        Raises:
            ModelError: their outputs differ in shape.
        """
        if a.logits.shape != b.logits.shape:
            shapes = ", ".join(f"{n} gives {tuple(r.logits.shape)}" for n, r in zip(self._names, (a, b), strict=True))
            raise ModelError(f"outputs of other shapes cannot be compared: {shapes}")
        self._images += len(a.logits)
        self._same += int((a.logits.argmax(-1) == b.logits.argmax(-1)).sum())
        self._outputs.add(a.logits, b.logits)
        for path, tensors in a.layers.items():
            if path in b.layers:
                self._add_layer(path, tensors, b.layers[path])

    def _add_layer(self, path: str, a: list[Tensor], b: list[Tensor]) -> None:
        if [tensor.shape for tensor in a] != [tensor.shape for tensor in b]:
            self._uncompared[path] = None
            return
        running = self._layers.setdefault(path, Running())
        for one, other in zip(a, b, strict=True):
            running.add(one, other)

    def verdict(self, *, data: str, tolerance: float) -> Verification:
        """Returns the figures of all batches, of which there must be one.

        Args:
            data: what the images are, in words.
            tolerance: largest relative error that counts as equal.
        """
        outputs, layers = self._outputs.difference(""), [run.difference(path) for path, run in self._layers.items()]
        first = next((place for place, layer in enumerate(layers) if layer.exceeds(tolerance)), None)
        return Verification(
            a=self._names[0],
            b=self._names[1],
            agree=not outputs.exceeds(tolerance),
            images=self._images,
            data=data,
            tolerance=tolerance,
            outputs=outputs,
            top1_agreement=100 * self._same / self._images,
            first=None if first is None else layers[first],
            before=layers[first - 1] if first else None,
            layers=tuple(layers),
            uncompared=tuple(self._uncompared),
        )


def _larger(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
