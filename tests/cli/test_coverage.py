import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import reparam
from reparam_cli.render.coverage import survey_progress_on
from tests.cli.conftest import RunCli
from tests.survey.stand_ins import attention, check, coverage, examination

GOOD = examination("vit_a", tallies=[attention(found=12, converted=12)])
BAD = examination("vit_b", error="timed out after 9 s", checks=[check("gradients", "failed", "norm gets none")])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked for; "answer" is what it gets."""
    seen: dict[str, Any] = {"answer": coverage(GOOD)}

    def run(pattern: Any, *, progress: Any, **options: Any) -> Any:
        seen.update(pattern=pattern, **options)
        return seen["answer"]

    monkeypatch.setattr(reparam, "coverage", run)
    return seen


def test_a_run_without_failures_shows_totals_and_exits_with_zero(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("coverage", "vit*")
    assert answer.code == 0
    assert "1 architecture with recipe toy, depth plan" in answer.out
    assert ["attention", "12", "12", "0", "0", "0", "0"] in [line.split() for line in answer.out.splitlines()]
    assert "no failures" in answer.out


def test_a_failure_is_listed_and_makes_exit_code_one(run_cli: RunCli, asked: dict[str, Any]) -> None:
    asked["answer"] = coverage(GOOD, BAD)
    answer = run_cli("coverage", "vit*")
    assert answer.code == 1
    assert "vit_b: timed out after 9 s\nvit_b: gradients: norm gets none\n1 of 2 failed" in answer.out
    assert "vit_a:" not in answer.out


def test_every_option_reaches_the_api(run_cli: RunCli, asked: dict[str, Any], tmp_path: Path) -> None:
    page, result, earlier = tmp_path / "c.md", tmp_path / "c.json", tmp_path / "e.json"
    words = (
        "--recipe none --depth full --representatives --jobs 2 --timeout 9 --memory 3 --max-params 1.5G --fresh --retry"
    )
    files = ("--out", str(page), "--json", str(result), "--join", str(earlier))
    assert run_cli("coverage", "--all", *words.split(), *files).code == 0
    del asked["answer"]
    assert asked == {
        "pattern": "*",
        "recipe": "none",
        "depth": "full",
        "representatives": True,
        "json_file": result,
        "out": page,
        "joined": [earlier],
        "jobs": 2,
        "timeout": 9.0,
        "memory_gb": 3.0,
        "max_params": 1_500_000_000,
        "fresh": True,
        "retry": True,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["coverage"], "or say --all"),
        (["coverage", "vit*", "--depth", "deep"], 'wanted plan or full, got "deep"'),
        (["coverage", "vit*", "--max-params", "many"], 'wanted a count such as 20k, 700M or 1.5G, got "many"'),
        (["coverage", "vit*", "--max-params", "inf"], 'got "inf"'),
        (["coverage", "vit*", "--max-params=-5M"], 'got "-5M"'),
    ],
    ids=["no-pattern", "depth", "count", "endless count", "negative count"],
)
def test_what_cannot_be_meant_is_refused(run_cli: RunCli, asked: dict[str, Any], words: list[str], said: str) -> None:
    answer = run_cli(*words)
    assert answer.code == 2
    assert said in " ".join(answer.err.replace("│", " ").split())
    assert "pattern" not in asked


def test_a_terminal_gets_a_bar_and_failures_stay_above_it() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with survey_progress_on(console) as show:
        show(reparam.SurveyStep(what="examined", done=0, total=2))
        show(reparam.SurveyStep(what="examined", done=1, total=2, name="vit_b", examination=BAD))
    assert "1/2" in screen.getvalue()
    assert "vit_b: timed out after 9 s" in screen.getvalue()


def test_a_pipe_gets_one_line_for_each_architecture() -> None:
    screen = io.StringIO()
    with survey_progress_on(Console(file=screen, width=100)) as show:
        show(reparam.SurveyStep(what="outlined", done=3, total=9))
        show(reparam.SurveyStep(what="outlined", done=4, total=9, name="vit_a"))
        show(reparam.SurveyStep(what="examined", done=1, total=2, name="vit_a", examination=GOOD))
    assert screen.getvalue().splitlines() == [
        "outlined before: 3 of 9",
        "outlined 4/9  vit_a",
        "examined 1/2  vit_a  0.0 s",
    ]
