import json
from pathlib import Path
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def report(*arguments: Any, **options: Any) -> object:
        calls.append((arguments, options))
        options["progress"].message("loading runs/x")
        missing = {
            "run": "runs/x",
            "section": "sensitivity",
            "why": "None yet",
            "command": "reparam sensitivity runs/x",
        }
        return reparam.Report.model_validate({"out": "runs/x/report.html", "file_bytes": 141_929, "missing": [missing]})

    monkeypatch.setitem(vars(reparam), "report", report)
    return calls


def test_the_page_and_its_size_are_told_and_what_is_missing(run_cli: RunCli, asked: list[Any]) -> None:
    answer = run_cli("report", "runs/x")
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "wrote runs/x/report.html, 142 kB; open it in a browser",
        "no sensitivity of runs/x: None yet: reparam sensitivity runs/x",
    ]
    assert answer.err == "loading runs/x\n"
    (arguments, options) = asked[0]
    assert arguments == (Path("runs/x"), None)
    assert (options["out"], options["data"], options["images"], options["measure"]) == (None, None, 8, True)


def test_a_second_run_and_the_options_are_handed_on(run_cli: RunCli, asked: list[Any]) -> None:
    run_cli(
        "report", "a", "b", "--out", "x.html", "--images", "0", "--no-latency", "--data-dir", "d", "--crop-pct", "1"
    )
    (arguments, options) = asked[0]
    assert arguments == (Path("a"), Path("b"))
    assert (options["out"], options["images"], options["measure"]) == (Path("x.html"), 0, False)
    assert options["data"] == reparam.DataSettings(data_dir="d", crop_pct=1.0)


def test_json_is_the_record_alone_on_stdout(run_cli: RunCli, asked: list[Any]) -> None:
    found = json.loads(run_cli("report", "runs/x", "--json").out)
    assert (found["out"], found["file_bytes"]) == ("runs/x/report.html", 141_929)
    assert found["missing"][0]["command"] == "reparam sensitivity runs/x"


def test_a_folder_that_is_no_run_is_one_sentence(run_cli: RunCli, tmp_path: Path) -> None:
    answer = run_cli("report", str(tmp_path))
    assert answer.code == 2
    assert answer.err.startswith(f"error: {tmp_path}: the folder has no config.json.")
    assert list(tmp_path.iterdir()) == []
