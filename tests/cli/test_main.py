import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reparam
import reparam_cli
from tests.cli.conftest import RunCli

HEAVY = ("torch", "timm", "numpy", "rich", "pydantic", "accelerate", "safetensors", "huggingface_hub")


def _failing(error: BaseException) -> Callable[..., Any]:
    def verb(*_: object, **__: object) -> None:
        raise error

    return verb


def test_version_is_the_packages(run_cli: RunCli) -> None:
    answer = run_cli("--version")
    assert (answer.code, answer.out) == (0, f"reparam {reparam.__version__}\n")


@pytest.mark.parametrize("verb", ["plan", "convert", "finetune", "evaluate", "profile", "demo", "recipes"])
def test_help_names_every_verb_and_every_verb_has_help(run_cli: RunCli, verb: str) -> None:
    assert f"\n  {verb} " in run_cli("--help").out
    answer = run_cli(verb, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: reparam {verb}")


def test_help_is_printed_without_torch_timm_or_rich() -> None:
    program = (
        "import sys; from reparam_cli.main import run; code = run(['--help']); "
        f"print(code, *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=_environment()
    )
    assert done.stderr == "0\n"


def test_only_the_render_package_knows_rich() -> None:
    package = Path(reparam_cli.__file__).parent
    users = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) rich\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert users == {"render"}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        pytest.param(["convrt"], "No such command 'convrt'", id="unknown verb"),
        pytest.param(["plan", "x"], "Missing option '--recipe'", id="missing option"),
        pytest.param(["plan", "x", "--recipe", "y", "--stage", "-1"], "--stage", id="out of range"),
        pytest.param(["plan", "x", "--recipe", "y", "--img-size", "big"], "--img-size", id="not a number"),
        pytest.param(["plan", "x", "--recipe", "y", "--model-kwargs", "depth"], "KEY=VALUE", id="no pair"),
        pytest.param(["finetune", "x", "--epoch", "1"], "--epochs", id="misspelt option"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(run_cli: RunCli, argv: list[str], sentence: str) -> None:
    answer = run_cli(*argv)
    assert (answer.code, answer.out) == (2, "")
    assert sentence in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        pytest.param(
            reparam.errors.PlanError("rule 2 matches nothing"), 2, "error: rule 2 matches nothing\n", id="user"
        ),
        pytest.param(PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied\n", id="file"),
        pytest.param(OSError("disk gone"), 2, "error: disk gone\n", id="os"),
        pytest.param(ZeroDivisionError("oh"), 1, "error: unexpected ZeroDivisionError: oh\n", id="bug"),
        pytest.param(
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            1,
            "can't allocate memory: 9 bytes\n       Smaller batches or images need less.\n",
            id="memory",
        ),
        pytest.param(KeyboardInterrupt(), 130, "stopped by the keyboard", id="interrupt"),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_code(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, sentence: str
) -> None:
    monkeypatch.setitem(vars(reparam), "plan", _failing(error))
    answer = run_cli("plan", "x", "--recipe", "y")
    assert (answer.code, answer.out) == (code, "")
    assert sentence in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["--debug", "plan", "x", "--recipe", "y"], id="before the verb"),
        pytest.param(["plan", "x", "--recipe", "y", "--debug"], id="after the verb"),
    ],
)
def test_debug_shows_the_traceback_wherever_it_stands(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.setitem(vars(reparam), "plan", _failing(reparam.errors.PlanError("no")))
    answer = run_cli(*argv)
    assert answer.code == 2
    assert "Traceback" in answer.err
    assert answer.err.endswith("error: no\n")


def test_debug_can_be_set_in_the_environment(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(reparam), "plan", _failing(reparam.errors.PlanError("no")))
    monkeypatch.setenv("REPARAM_DEBUG", "1")
    assert "Traceback" in run_cli("plan", "x", "--recipe", "y").err
    monkeypatch.setenv("REPARAM_DEBUG", "0")
    assert "Traceback" not in run_cli("plan", "x", "--recipe", "y").err


def test_what_the_library_logs_is_a_note_on_stderr(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    def verb(*_: object, **__: object) -> None:
        logging.getLogger("reparam.models").info("deit_tiny stands for deit_tiny_patch16_224")
        logging.getLogger("reparam.models").warning("slow disk")
        print("chatter of a library")
        raise reparam.errors.PlanError("enough")

    monkeypatch.setitem(vars(reparam), "plan", verb)
    answer = run_cli("plan", "x", "--recipe", "y", "--json")
    assert answer.out == ""
    assert "note: deit_tiny stands for deit_tiny_patch16_224\nwarning: slow disk\nchatter of a library" in answer.err


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize(("process", "printed"), [("0", f"reparam {reparam.__version__}\n"), ("1", "")])
def test_of_the_processes_that_a_launcher_starts_only_the_first_prints(process: str, printed: str) -> None:
    environment = {**os.environ, "RANK": process, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "reparam_cli", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
