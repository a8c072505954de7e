"""Models of the user's own: `file.py:factory` imports the file under a private name and calls the factory."""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from reparam.errors import ModelError


def load_factory(name: str) -> Callable[..., Any]:
    """Returns the function that `name`, a "path/file.py:factory", points at.

    Raises:
        ModelError: no such file, a file that fails to import, or no such function in it.
    """
    path, _, attribute = name.rpartition(":")
    file = _file(path)
    if not file.is_file():
        raise ModelError(f'model "{name}": there is no file {file}. Check the path; it is relative to {Path.cwd()}.')
    module = _imported(file, file.stat().st_mtime_ns)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        known = f"Functions there: {', '.join(sorted(public))}." if public else "It defines no function."
        raise ModelError(f'model "{name}": {file.name} has no function "{attribute}". {known}')
    return factory  # type: ignore[no-any-return]  # what a user's file holds has no type


def call_factory(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Calls the factory of `name` with `kwargs` and returns its module.

    Raises:
        ModelError: as `load_factory`, or the factory raises or returns no nn.Module.
    """
    factory = load_factory(name)
    try:
        with _importable(_file(name.rpartition(":")[0]).parent):
            model = factory(**kwargs)
    except Exception as error:
        raise ModelError(f'model "{name}": {_call(name, kwargs)} raised {type(error).__name__}: {error}') from error
    if not isinstance(model, nn.Module):
        raise ModelError(f'model "{name}": wanted a torch.nn.Module from {_call(name, kwargs)}, got {type(model)}.')
    return model


def absolute(name: str) -> str:
    """The same "path/file.py:factory" with an absolute path, so that it holds from any folder."""
    path, _, attribute = name.rpartition(":")
    return f"{_file(path)}:{attribute}"


def takes(factory: Callable[..., Any], argument: str) -> bool:
    """Whether `factory` can be called with a keyword `argument`."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return True
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _file(path: str) -> Path:
    return Path(path).expanduser().resolve()


@functools.cache
def _imported(file: Path, changed_ns: int) -> ModuleType:
    """Imports `file`; `changed_ns` is part of the cache's key, so that an edited file is imported anew."""
    private = f"_reparam_file_{file.stem}"  # stable: plans know a module by its class, "module.name"
    spec = importlib.util.spec_from_file_location(private, file)
    if spec is None or spec.loader is None:
        raise ModelError(f"{file}: Python cannot import this file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses and typing look their module up here
    try:
        with _importable(file.parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[private]
        raise ModelError(f"{file}: importing it raised {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets the user's file import its neighbours, as it would when run as a script."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may have edited the path itself
            sys.path.remove(entry)


def _call(name: str, kwargs: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    return f"{name.rpartition(':')[2]}({arguments})"
