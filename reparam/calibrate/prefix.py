"""Runs a model up to one layer and no further, without running again what is finished.

Finished blocks answer from memory: the newest one with its kept output, those before it with an empty tensor of the
right shape, which nothing but the next block reads. Whether that holds for this model is tried, not assumed: once a
block is finished, what the next layer is given must be bit-equal with and without the short cut, else it is not taken.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):
    """The layer has run; what follows does not matter."""


class Prefix:
    """A model, the batches it is run on, and the outputs of its newest finished block.

    Args:
        model: in eval mode.
        batches: images (B, C, H, W); they and one block's outputs are all that is held.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        self.model, self.batches = model, batches
        self._modules = dict(model.named_modules())
        self._shapes: dict[str, list[torch.Size]] = {}
        self._newest: tuple[str, list[Tensor]] | None = None
        self._is_exact = True

    def at(self, path: str) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yields inputs and output of the layer at `path`, batch by batch; its first call alone."""
        for number in range(len(self.batches)):
            yield self._run(path, number)

    def finish(self, block: str, following: str) -> None:
        """Keeps the outputs of a block whose layers are done; `following` is the layer that comes next."""
        outputs = [self._run(block, number)[1] for number in range(len(self.batches))]
        (honest, *_), _ = self._run(following, 0, is_short=False)
        kept = self._newest, dict(self._shapes)
        self._shapes[block], self._newest = [output.shape for output in outputs], (block, outputs)
        (short, *_), _ = self._run(following, 0)
        if not torch.equal(short, honest):
            self._newest, self._shapes = kept

    @torch.no_grad()
    def _run(self, path: str, number: int, *, is_short: bool = True) -> tuple[tuple[Tensor, ...], Tensor]:
        found: list[tuple[tuple[Tensor, ...], Tensor]] = []

        def reached(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found.append((tuple(x.clone() for x in inputs if isinstance(x, Tensor)), output))
            raise _Reached

        handle = self._modules[path].register_forward_hook(reached)
        try:
            with self._finished(number) if is_short else nullcontext():
                self.model(self.batches[number])
        except _Reached:
            return found[0]
        finally:
            handle.remove()
        raise RuntimeError(f"{path} did not run")

    @contextmanager
    def _finished(self, number: int) -> Iterator[None]:
        answers: dict[str, Tensor] = {}
        if self._newest is not None:
            newest, outputs = self._newest
            answers = {b: outputs[number].new_empty(shapes[number]) for b, shapes in self._shapes.items()}
            answers[newest] = outputs[number]
        with answering({self._modules[path]: answer for path, answer in answers.items()}):
            yield


@contextmanager
def answering(answers: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Lets modules give an answer, a fresh copy each time, instead of running."""
    for module, answer in answers.items():
        module.forward = _answer(answer)
    try:
        yield
    finally:
        for module in answers:
            del module.forward


def _answer(answer: Tensor) -> Callable[..., Tensor]:
    def forward(*_: Any, **__: Any) -> Tensor:
        return answer.clone()  # an operation in place may follow

    return forward
