"""What a report was made with: versions, system, processor, threads."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from reparam.recipe.schema import Frozen

_PACKAGES = ("torch", "timm", "safetensors", "accelerate")


class Environment(Frozen):
    """This machine and the versions that run on it; `gpus` are names."""

    reparam: str
    python: str
    packages: dict[str, str]
    system: str
    processor: str
    cores: int
    threads: int
    gpus: tuple[str, ...]


def this_environment() -> Environment:
    """Reads it off the running program."""
    return Environment(
        reparam=_version("reparam") or "of unknown version",
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _version(name))},
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The model's name where Linux tells it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
