"""Runs a model from a cut on: the modules before it return blanks, and the cut gets a tensor that was kept.

Blanks are NaN, so whatever reads past a cut shows in the result; a cut is proved before it is used. Everything after
the cut is the model's own forward on the same tensor, so the result has the bits of a whole run.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.tradeoff.cuts import Cut


class _ReachedError(Exception):
    """Ends a forward at a cut."""


class Replay:
    """Runs of a model, and of models that are like it up to a cut.

    A whole run inside `watching` comes first for each size of batch: it shows the form of what is left out later.
    """

    def __init__(self, cuts: Iterable[Cut]) -> None:
        self._paths = {path for cut in cuts for path in cut.skipped}
        self._forms: dict[tuple[int, str], Any] = {}
        self._blanks: dict[tuple[Any, ...], Tensor] = {}

    @contextmanager
    def watching(self, model: nn.Module, *, batch: int) -> Iterator[None]:
        """Inside, the forms of what the modules of a whole run on `batch` images give are remembered."""

        def note(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                self._forms[batch, path] = pytree.tree_map_only(Tensor, self.blank, output)

            return hook

        with ExitStack() as stack:
            for path in self._paths:
                stack.callback(model.get_submodule(path).register_forward_hook(note(path)).remove)
            yield

    def logits(self, model: nn.Module, cut: Cut, value: Tensor, *, blank: Tensor) -> Tensor:
        """What the model gives when the cut has this value; `blank` is that of its images (B, C, H, W)."""
        with self._beginning_at(cut, value, model, batch=len(blank)):
            logits: Tensor = model(blank)
        return logits

    def value_from(self, model: nn.Module, target: Cut, cut: Cut, value: Tensor, *, blank: Tensor) -> Tensor:
        """What a later cut gets when `cut` has this value; only what lies between them is run."""
        with self._beginning_at(cut, value, model, batch=len(blank)):
            return value_at(model, target, images=blank)

    def blank(self, tensor: Tensor) -> Tensor:
        """A tensor of the same form and without a value; those of one form are one."""
        key = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
        if key not in self._blanks:
            self._blanks[key] = torch.full_like(tensor, float("nan") if tensor.is_floating_point() else 0)
        return self._blanks[key]

    @contextmanager
    def _beginning_at(self, cut: Cut, value: Tensor, model: nn.Module, *, batch: int) -> Iterator[None]:
        def put(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (value.clone(), *args[1:])  # a forward may write to its input

        with ExitStack() as stack:
            for path in cut.skipped:
                stack.enter_context(_answering(model.get_submodule(path), self._forms[batch, path]))
            handle = model.get_submodule(cut.path).register_forward_pre_hook(put, prepend=True)
            stack.callback(handle.remove)
            yield


def value_at(model: nn.Module, cut: Cut, *, images: Tensor) -> Tensor:
    """What a cut gets in a run on images (B, C, H, W); nothing after it is run."""
    with noting(model, cut, stop=True) as found:
        try:
            model(images)
        except _ReachedError:
            return found[0]
    raise AssertionError(f"{cut.path} was not called")


@contextmanager
def noting(model: nn.Module, cut: Cut, *, stop: bool = False) -> Iterator[list[Tensor]]:
    """Yields a list to which each run inside adds what the cut gets; with `stop`, a run ends there."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0].clone())  # what runs later may write to it
        if stop:
            raise _ReachedError

    handle = model.get_submodule(cut.path).register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _answering(module: nn.Module, answer: Any) -> Iterator[None]:
    """Inside, calls of a module return an answer and run nothing."""
    before = vars(module).get("forward")
    module.forward = lambda *args, **kwargs: answer
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
