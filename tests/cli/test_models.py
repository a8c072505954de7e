import json
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli
from tests.survey.stand_ins import attention, examination, reason

FOUND = (
    examination("vit_a", parameters=5_720_000, tallies=[attention(found=12, converted=12)]),
    examination("xcit_b", tallies=[attention(found=5, converted=3, refused=2)], reasons=[reason("it is causal", 2)]),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked for; the answer is `FOUND`, with Ctrl-C after the first if "stop" is set."""
    seen: dict[str, Any] = {}

    def list_models(pattern: Any, *, progress: Any, **options: Any) -> Any:
        seen.update(pattern=pattern, **options)
        progress(reparam.SurveyStep(what="examined", done=0, total=2))
        for done, found in enumerate(seen.get("answer", FOUND), start=1):
            progress(reparam.SurveyStep(what="examined", done=done, total=2, name=found.name, examination=found))
            if seen.get("stop"):
                raise KeyboardInterrupt

    monkeypatch.setattr(reparam, "list_models", list_models)
    return seen


def test_each_architecture_is_a_row_and_each_reason_a_line(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("models", "vit*", "xcit_b", "--recipe", "toy", "--jobs", "2", "--timeout", "9", "--memory", "3")
    assert answer.code == 0
    rows = [line.split() for line in answer.out.splitlines()]
    assert rows[1] == ["vit_a", "5.72", "M", "12", "/", "12"]
    assert rows[2] == ["xcit_b", "10", "3", "/", "5"]
    assert "2 attention sites refused: it is causal (xcit_b)" in answer.out
    assert "examined 1/2  vit_a" in answer.err
    assert asked == {"pattern": ["vit*", "xcit_b"], "recipe": "toy", "jobs": 2, "timeout": 9.0, "memory_gb": 3.0}


def test_json_is_the_list_of_examinations(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("models", "--all", "--json")
    assert [reparam.Examination.model_validate(entry) for entry in json.loads(answer.out)] == list(FOUND)
    assert asked["pattern"] == "*"


def test_ctrl_c_shows_what_there_is_and_says_that_it_was_stopped(run_cli: RunCli, asked: dict[str, Any]) -> None:
    asked["stop"] = True
    answer = run_cli("models", "vit*")
    assert answer.code == 130
    assert "vit_a" in answer.out
    assert "xcit_b" not in answer.out
    assert "stopped by the keyboard" in answer.err


def test_a_failure_is_named_and_makes_exit_code_one(run_cli: RunCli, asked: dict[str, Any]) -> None:
    asked["answer"] = [examination("vit_c", error="ValueError: no luck")]
    answer = run_cli("models", "vit_c")
    assert answer.code == 1
    assert "vit_c: failed: ValueError: no luck" in answer.out
    assert "vit_c: ValueError: no luck" in answer.err


def test_without_a_pattern_families_are_listed_and_nothing_is_planned(
    run_cli: RunCli, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reparam, "model_families", lambda: {"vit": ["vit_a", "vit_b"], "xcit": ["xcit_b"]})
    answer = run_cli("models")
    assert (answer.code, asked) == (0, {})
    assert [line.split() for line in answer.out.splitlines()[:2]] == [
        ["vit", "2", "vit_a,", "..."],
        ["xcit", "1", "xcit_b"],
    ]
    assert "3 architectures in 2 families." in answer.out
    assert json.loads(run_cli("models", "--json").out) == {"vit": ["vit_a", "vit_b"], "xcit": ["xcit_b"]}


def test_an_unknown_name_is_one_sentence_with_close_names(run_cli: RunCli) -> None:
    answer = run_cli("models", "resnett18")
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.err.splitlines()
    assert "resnett18" in line
    assert "resnet18" in line
