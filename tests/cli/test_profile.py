import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import reparam
from tests.cli.conftest import RunCli


class _Profile(SimpleNamespace):
    def model_dump(self, *, mode: str, by_alias: bool) -> dict[str, Any]:
        return {"name": self.name, "parameters": self.parameters}


def _profile(name: str, *, muls: int, ms: float, latency: bool = True) -> _Profile:
    measured = SimpleNamespace(
        median_ms=ms, iqr_ms=0.125, batch_size=1, threads=2, device="cpu", runs=30, dtype="float32"
    )
    return _Profile(
        name=name,
        parameters=5_717_416,
        operations={"mul.f32": muls, "add.f32": 2000, "shift.f32": 4000 - muls},
        uncounted={} if name.endswith("dense") else {"aten.sin": 2},
        experts=None if name.endswith("dense") else "balanced",
        file_bytes=22_900_000,
        latency=measured if latency else None,
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = []

    def profile(source: str, **options: Any) -> object:
        calls.append((source, options))
        is_dense = source.endswith("dense")
        return _profile(
            source, muls=4000 if is_dense else 1000, ms=10.0 if is_dense else 12.5, latency=options["measure"]
        )

    monkeypatch.setitem(vars(reparam), "profile", profile)
    return calls


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "dense").mkdir(parents=True)
    return tmp_path / "run"


def _lines(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_a_model_stands_alone(run_cli: RunCli, asked: list[tuple[str, dict[str, Any]]]) -> None:
    lines = _lines(run_cli("profile", "deit_tiny").out)
    assert asked == [("deit_tiny", {"batch_size": 1, "measure": True})]
    assert lines[:2] == ["deit_tiny", "model"]
    assert "parameters 5.72 M" in lines
    assert "latency, median 12.5 ms" in lines
    assert "not counted in deit_tiny: aten.sin=2" in lines


def test_a_run_stands_beside_its_dense_original(
    run_cli: RunCli, asked: list[tuple[str, dict[str, Any]]], run_folder: Path
) -> None:
    lines = _lines(run_cli("profile", str(run_folder), "-b", "8").out)
    assert asked == [
        (str(run_folder / "dense"), {"batch_size": 8, "measure": True}),
        (str(run_folder), {"batch_size": 8, "measure": True}),
    ]
    assert "multiplications 4.00 k 1.00 k 4.00x fewer" in lines
    assert "shifts 0 3.00 k all new" in lines
    assert "additions 2.00 k 2.00 k same" in lines
    assert "weights on disk 22.9 MB 22.9 MB" in lines


def test_slower_than_dense_is_said(run_cli: RunCli, asked: list[tuple[str, dict[str, Any]]], run_folder: Path) -> None:
    assert "latency, median 10.0 ms 12.5 ms 1.25x slower" in _lines(run_cli("profile", str(run_folder)).out)


def test_nothing_is_run_when_only_counts_are_wanted(run_cli: RunCli, asked: list[tuple[str, dict[str, Any]]]) -> None:
    out = run_cli("profile", "deit_tiny", "--no-latency").out
    assert asked[0][1]["measure"] is False
    assert "latency" not in out


def test_json_holds_the_model_and_its_dense_original(
    run_cli: RunCli, asked: list[tuple[str, dict[str, Any]]], run_folder: Path
) -> None:
    found = json.loads(run_cli("profile", str(run_folder), "--json").out)
    assert (found["name"], found["dense"]["name"]) == (str(run_folder), str(run_folder / "dense"))
    assert json.loads(run_cli("profile", str(run_folder), "--json", "--no-dense").out)["dense"] is None
