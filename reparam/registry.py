"""A named table that fills itself: decorate a class in one file and the registry finds it on first use."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from reparam.errors import ReparamError
from reparam.suggest import did_you_mean

T = TypeVar("T")
U = TypeVar("U")


class Registry(Generic[T]):
    """Names to objects, filled by decorator; walks `package` and entry points `group` on the first look-up.

    Args:
        noun: what one entry is called in messages, such as "operator".
        package: dotted name of the package whose modules register entries when imported.
        group: entry-point group through which other distributions add entries.
        error: raised for an unknown name.
    """

    def __init__(self, noun: str, *, package: str, group: str, error: type[ReparamError]) -> None:
        self._noun = noun
        self._package = package
        self._group = group
        self._error = error
        self._entries: dict[str, T] = {}
        self._is_discovered = False

    def register(self, name: str) -> Callable[[U], U]:
        """Returns a decorator that files its object under `name`; a second object under one name raises ValueError."""

        def file(entry: U) -> U:
            if name in self._entries and self._entries[name] is not entry:
                raise ValueError(f'{self._noun} "{name}" is registered twice: {self._entries[name]!r} and {entry!r}')
            self._entries[name] = entry  # type: ignore[assignment]  # T's upper bound is the registry author's promise
            return entry

        return file

    def get(self, name: str) -> T:
        """Returns the entry called `name`, or raises the registry's error with the closest known names."""
        self._discover()
        if name not in self._entries:
            hint = did_you_mean(name, self._entries) or f" Known: {', '.join(self.names())}."
            raise self._error(f'unknown {self._noun} "{name}".{hint}')
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        self._discover()
        return tuple(sorted(self._entries))

    def __iter__(self) -> Iterator[tuple[str, T]]:
        self._discover()
        return iter(sorted(self._entries.items()))

    def _discover(self) -> None:
        if self._is_discovered:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{self._package}."):
            importlib.import_module(module.name)
        for point in entry_points(group=self._group):
            point.load()
        # Only now: a file that fails to import must fail again next time, not leave a half-filled table behind.
        self._is_discovered = True
