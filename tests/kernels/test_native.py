"""native_library: what is built, where it is kept, and what is said when it cannot be built."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reparam.kernels import native
from reparam.kernels.native import native_library

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="needs a C++ compiler")
REMEDY = "It wants a C++ compiler with OpenMP, g++ or clang++, and a cache folder to write to (XDG_CACHE_HOME)"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A room with one small source, an empty cache folder, and no library remembered, before or after."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "tiny.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(native, "__file__", str(tmp_path / "room" / "native.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REPARAM_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    native_library.cache_clear()
    yield tmp_path / "cache" / "reparam"
    native_library.cache_clear()


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder on the PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What was logged since it was last asked: one warning, or nothing."""

    def take() -> str:
        messages = [record.getMessage() for record in caplog.records if record.name == "reparam.kernels.native"]
        caplog.clear()
        assert len(messages) <= 1
        return "".join(messages)

    return take


def compiler(path: Path, script: str) -> None:
    """Puts a g++ on the PATH that is a shell script."""
    (path / "g++").write_text(f"#!/bin/sh\n{script}\n")
    (path / "g++").chmod(0o755)


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) if folder.exists() else []


def test_it_can_be_switched_off_without_a_warning(
    said: Callable[[], str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPARAM_NATIVE", "0")
    assert native_library("tiny") is None
    assert said() == ""
    assert not cache.exists()


@needs_compiler
def test_a_source_is_compiled_into_the_users_cache(cache: Path) -> None:
    library = native_library("tiny")
    assert library is not None
    assert library.answer() == 42
    (name,) = files(cache)
    assert name.startswith("tiny-")
    assert name.endswith(".so")


@needs_compiler
def test_what_was_built_is_loaded_and_not_built_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_library("tiny") is not None
    built = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    native_library.cache_clear()

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the compiler ran")

    monkeypatch.setattr(subprocess, "run", refuse)
    library = native_library("tiny")
    assert library is not None
    assert library.answer() == 42
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == built


@needs_compiler
def test_a_changed_source_header_flag_or_machine_is_built_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native_library("tiny") is not None
    native_library.cache_clear()
    (tmp_path / "room" / "tiny.cpp").write_text('extern "C" int answer() { return 43; }\n')
    library = native_library("tiny")
    assert library is not None
    assert library.answer() == 43
    native_library.cache_clear()
    monkeypatch.setattr(native, "_machine", lambda: "flags : another")
    assert native_library("tiny") is not None
    assert len(files(cache)) == 3
    native_library.cache_clear()
    (tmp_path / "room" / "tiny.h").write_text("// what a source may include\n")
    assert native_library("tiny") is not None
    assert len(files(cache)) == 4
    assert native_library("tiny", "-ffp-contract=off") is not None
    assert len(files(cache)) == 5


@needs_compiler
def test_without_xdg_cache_home_the_cache_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert native_library("tiny") is not None
    assert len(files(tmp_path / "home" / ".cache" / "reparam")) == 1


def test_one_warning_names_the_remedy_where_there_is_no_compiler(
    said: Callable[[], str], path: Path, cache: Path
) -> None:
    assert native_library("tiny") is None
    text = said()
    assert text.startswith("the fast tiny kernel cannot be built, so a slower one runs")
    assert "none of g++, clang++, c++ is on the PATH" in text
    assert REMEDY in text
    assert native_library("tiny") is None
    assert said() == ""
    assert not cache.exists()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(said: Callable[[], str], path: Path, cache: Path) -> None:
    compiler(path, 'for last; do :; done; echo half > "$last"; echo "cannot find -lgomp" >&2; exit 1')
    assert native_library("tiny") is None
    assert re.search(f"cannot find -lgomp.*{re.escape(REMEDY)}", said())
    assert files(cache) == []


def test_a_long_complaint_is_cut_to_its_end(said: Callable[[], str], path: Path) -> None:
    compiler(path, 'i=0; while [ $i -lt 500 ]; do echo "error: line $i" >&2; i=$((i + 1)); done; exit 1')
    assert native_library("tiny") is None
    text = said()
    assert "error: line 499" in text
    assert len(text) < 600
    assert "line 100 " not in text


def test_a_compiler_that_hangs_is_given_up_and_leaves_nothing(
    said: Callable[[], str], path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_TIMEOUT", 0.3)
    compiler(path, 'echo "still thinking" >&2; exec /bin/sleep 30')
    assert native_library("tiny") is None
    assert "still thinking" in said()
    assert files(cache) == []


def test_a_library_that_cannot_be_loaded_is_not_used(said: Callable[[], str], path: Path) -> None:
    compiler(path, 'for last; do :; done; echo "no library" > "$last"')
    assert native_library("tiny") is None
    assert "tiny-" in said()


def test_a_cache_that_cannot_be_made_is_said_so(said: Callable[[], str], path: Path, cache: Path) -> None:
    compiler(path, "exit 0")
    cache.parent.write_text("a file where the folder should be")
    assert native_library("tiny") is None
    assert "Not a directory" in said()


def test_a_user_without_a_home_folder_is_told(
    said: Callable[[], str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    compiler(path, "exit 0")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(native.Path, "home", homeless)
    assert native_library("tiny") is None
    assert "Could not determine home directory" in said()


def test_cxx_names_the_compiler_that_is_preferred(
    said: Callable[[], str], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(path, "echo the other >&2; exit 1")
    own = tmp_path / "own"
    own.write_text("#!/bin/sh\necho my own >&2; exit 1\n")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert native_library("tiny") is None
    assert "my own" in said()
    native_library.cache_clear()
    monkeypatch.setenv("CXX", "missing")
    assert native_library("tiny") is None
    assert "the other" in said()
