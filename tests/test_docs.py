"""The pages in docs: help texts are the program's own, commands parse, Python runs, links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from reparam_cli.argv import repeat_many_valued
from reparam_cli.main import app, run

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
HELP = re.compile(r"<!-- reparam (\w+) --help -->\n(?:```\n.*?```\n)?", re.DOTALL)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pages
def test_help_texts_are_the_programs_own(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Set REPARAM_UPDATE_GOLDEN=1 to rewrite the pages after a deliberate change."""

    def with_help(found: re.Match[str]) -> str:
        assert run([found[1], "--help"]) == 0
        return f"<!-- reparam {found[1]} --help -->\n```\n{capsys.readouterr().out}```\n"

    text = page.read_text(encoding="utf-8")
    wanted = HELP.sub(with_help, text)
    if os.environ.get("REPARAM_UPDATE_GOLDEN"):
        page.write_text(wanted, encoding="utf-8")
        text = wanted
    assert text == wanted


@pages
def test_every_command_that_is_shown_parses(page: Path) -> None:
    for line in _blocks(page.read_text(encoding="utf-8"), language=""):
        for command in line.replace("\\\n", " ").splitlines():
            if command.startswith("reparam "):
                _parse(shlex.split(command, comments=True)[1:])


@pages
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.slow
def test_the_operator_in_the_docs_conforms_and_converts(tmp_path: Path) -> None:
    definition, trial = _blocks((ROOT / "docs" / "add-an-operator.md").read_text(encoding="utf-8"), language="python")
    (tmp_path / "ternary.py").write_text(definition, encoding="utf-8")
    (tmp_path / "trial.py").write_text(f"import ternary\n{trial}", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    converted = _run([sys.executable, "trial.py"], folder=tmp_path, environment=environment)
    assert converted.count("TernaryLinear(") == 2
    suite = str(ROOT / "tests" / "ops" / "test_conformance.py")
    options = ["-p", "ternary", "-q", "-k", "ternary_linear", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    tested = _run([sys.executable, "-m", "pytest", *options, suite], folder=ROOT, environment=environment)
    assert re.search(r"\d+ passed", tested)


def _parse(argv: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    argv = repeat_many_valued(argv)
    while hasattr(command, "commands"):
        if argv[0].startswith("-"):
            return
        names = argv[0].split("|")  # `recipes list|show|check` names three verbs
        command, argv = command.commands[names[0]], argv[1:]
    if all(not word.isupper() for word in argv):
        command.make_context("reparam", argv)


def _blocks(text: str, *, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def _run(command: list[str], *, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
