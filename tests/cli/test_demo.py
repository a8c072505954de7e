import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli


class _Result(SimpleNamespace):
    def model_dump(self, *, mode: str, by_alias: bool) -> dict[str, Any]:
        return {"seconds": self.seconds, "rows": [vars(row) for row in self.rows]}


def _row(stage: str, *, top1: float, muls: int, ms: float) -> SimpleNamespace:
    return SimpleNamespace(
        stage=stage,
        top1=top1,
        parameters=50_000,
        multiplications=muls,
        shifts=4000 - muls,
        additions=4000,
        latency_ms=ms,
        file_bytes=210_000,
    )


RESULT = _Result(
    seconds=92.4,
    images=360,
    out="runs/demo",
    rows=[_row("dense", top1=98.5, muls=4000, ms=1.25), _row("converted, not trained", top1=97.75, muls=1000, ms=2.5)],
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)

    def demo(out: Path, **options: Any) -> object:
        arguments.update(options, out=out)
        options["progress"].message("evaluating the dense model")
        return RESULT

    monkeypatch.setitem(vars(reparam), "demo", demo)
    return arguments


def test_the_comparison_is_a_table_on_stdout_and_progress_is_on_stderr(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("demo")
    lines = [" ".join(line.split()) for line in answer.out.splitlines()]
    assert (asked["out"], asked["epochs"]) == (Path("runs/demo"), None)
    assert "dense 98.50 % 50.0 k 4.00 k 0 4.00 k 1.25 ms 210 kB" in lines
    assert "converted, not trained 97.75 % 50.0 k 1.00 k 3.00 k 4.00 k 2.50 ms 210 kB" in lines
    assert "slower than dense on this device" in lines
    assert lines[-1] == "saved to runs/demo"
    assert answer.err == "evaluating the dense model\n"


def test_json_is_the_result_and_nothing_else(run_cli: RunCli, asked: dict[str, Any]) -> None:
    found = json.loads(run_cli("demo", "--json", "--epochs", "1", "--out", "there").out)
    assert (asked["out"], asked["epochs"]) == (Path("there"), 1)
    assert [row["stage"] for row in found["rows"]] == ["dense", "converted, not trained"]


def test_a_second_demo_takes_the_next_free_folder(run_cli: RunCli, asked: dict[str, Any]) -> None:
    for folder in ("runs/demo", "runs/demo-2"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "demo.json").touch()
    assert run_cli("demo").out.endswith("saved to runs/demo-3\n")
    assert asked["out"] == Path("runs/demo-3")


def test_the_figures_are_not_broken_at_80_columns(
    run_cli: RunCli, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_cli("demo").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines[1].split()) == "dense 98.50 % 50.0 k 4.00 k 0 4.00 k 1.25 ms 210 kB"
