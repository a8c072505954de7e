"""Forward hooks that live as long as a `with` block."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from torch.utils.hooks import RemovableHandle


class Hooked:
    """Base of context managers that record a model through hooks: they are set on entry and gone on exit."""

    def __init__(self) -> None:
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        self._hooks.enter_context(held(self._set_hooks()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def _set_hooks(self) -> Iterable[RemovableHandle]:
        """Sets the hooks and returns their handles."""
        raise NotImplementedError


@contextmanager
def held(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes the hooks on exit, those too that were set before another one failed."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield
