"""How a model is written on the command line: a timm name, one of ours, `hf-hub:`, `local-dir:`, `file.py:factory`."""

from pathlib import Path

from reparam.errors import ModelError
from reparam.models.cifar_resnet import CIFAR_RESNETS
from reparam.models.spec import Source

_PREFIXES: tuple[Source, ...] = ("hf-hub", "local-dir")


def split_source(model: str) -> tuple[Source, str]:
    """Splits `model` into its source and the name there; a `file.py:factory` stays in one piece.

    Raises:
        ModelError: an empty name, a source without a name, a Python file without a factory, or a bare path.
    """
    if model in CIFAR_RESNETS:
        return "reparam", model
    for source in _PREFIXES:
        if model.startswith(f"{source}:"):
            return source, _named(model.removeprefix(f"{source}:"), model)
    path, _, factory = model.rpartition(":")
    if path.endswith(".py"):
        _named(factory, model)
        return "file", model
    if model.endswith(".py"):
        raise ModelError(f'model "{model}": wanted the function that makes it as well. Write "{model}:FUNCTION".')
    if any(mark in model for mark in "/\\:"):
        missing = "" if Path(model).exists() else "; there is no such file or folder"
        raise ModelError(
            f'model "{model}": wanted a timm name, got what looks like a path or a hub id{missing}. '
            f'Write "local-dir:{model}", "hf-hub:{model}" or "FILE.py:FUNCTION".'
        )
    return "timm", _named(model, model)


def _named(name: str, model: str) -> str:
    if not name:
        raise ModelError(f'model "{model}": the name is empty. Write a timm name, such as "deit_tiny".')
    return name
