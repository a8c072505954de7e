"""C++ sources and headers beside this file, compiled on first use for this machine and kept in the user's cache.

Nothing is built at installation. Where there is no compiler, or `REPARAM_NATIVE=0`, the callers have another way.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
_COMPILERS = ("g++", "clang++", "c++")
#: Compiling takes seconds; a compiler that hangs must not hang the training.
_TIMEOUT = 300


@functools.cache
def native_library(name: str, *flags: str) -> ctypes.CDLL | None:
    """The compiled `name`.cpp of this room; None, with one warning that says why, where it cannot be had.

    `flags` are the source's own; one that is compared bit for bit says what compilers may do to its floats.
    """
    if os.environ.get("REPARAM_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(_built(Path(__file__).with_name(f"{name}.cpp"), flags)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        detail = getattr(error, "stderr", None) or str(error)
        if isinstance(detail, bytes):  # a timeout's, whatever `text` says
            detail = detail.decode(errors="replace")
        logger.warning(
            "the fast %s kernel cannot be built, so a slower one runs (%s). It wants a C++ compiler with OpenMP, g++ "
            "or clang++, and a cache folder to write to (XDG_CACHE_HOME); REPARAM_NATIVE=0 silences this.",
            name,
            " ".join(detail.split())[-300:],
        )
        return None


def _built(source: Path, own: tuple[str, ...]) -> Path:
    compiler, flags = find_compiler(), (*_FLAGS, *own, "-fopenmp")
    if compiler is None:
        raise OSError(f"none of {', '.join(_COMPILERS)} is on the PATH")
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    recipe = "\0".join((*texts, compiler, *flags, _machine()))
    target = _cache() / f"{source.stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Compiled beside its target and renamed: processes that build at once do not meet half a file.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            draft = Path(folder) / target.name
            command = [compiler, *flags, str(source), "-o", str(draft)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
            draft.replace(target)
    return target


def find_compiler() -> str | None:
    """The path of a C++ compiler, or None where there is none."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *_COMPILERS)))), None)


def _machine() -> str:
    """What `-march=native` stands for here: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "reparam"
