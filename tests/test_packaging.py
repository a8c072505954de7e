"""What a release rests on: one version, a licence, and a changelog that knows both."""

import re
import tomllib
from pathlib import Path

import pytest

import reparam

ROOT = Path(__file__).parents[1]


def test_the_changelog_begins_with_the_packages_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == reparam.__version__


def test_the_licence_is_the_whole_apache_2_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("path", [".ci/run", "Makefile", "pyproject.toml"])
def test_installing_asks_nothing_but_the_default_package_index(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not re.search(r"index-url|find-links|https?://|\+cpu", text)


def test_every_tool_that_judges_the_code_is_pinned_to_a_minor_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["optional-dependencies"]["dev"]:
        assert re.search(r">=[\d.]+,<[\d.]+$", requirement), requirement


@pytest.mark.parametrize("verb", ["plan", "convert", "finetune", "evaluate", "profile", "report", "demo", "recipes"])
def test_every_verb_has_a_page(verb: str) -> None:
    page = (ROOT / "docs" / f"{verb}.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert f"reparam {verb}" in page
