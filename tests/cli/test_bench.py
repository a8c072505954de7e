import json
from pathlib import Path
from typing import Any

import pytest

import reparam
from reparam.api.bench_records import Bench, BenchCase, Growth
from reparam.cost.latency import Latency
from reparam.cost.measurement import Measurement, compare
from tests.cli.conftest import RunCli


def row(side: Any, engine: str, ms: float, error: float | None = None) -> Measurement:
    latency = Latency(
        median_ms=ms, iqr_ms=0.5, runs=9, batch_size=8, threads=1, device="cpu", dtype="float32"
    )  # fmt: skip
    return Measurement(
        side=side,
        engine=engine,
        title=f"the {engine}",
        batch_size=8,
        status="measured",
        latency=latency,
        images_per_second=8e3 / ms,
        error=error,
    )


ROWS = (
    row("converted", "int8", 50.0, 0.01),
    row("dense", "eager", 200.0),
    row("dense", "openvino", 100.0, 0.001),
    Measurement(side="dense", engine="nncf", title="x", batch_size=8, status="skipped", reason="nncf is not installed"),
)
BENCH = Bench(
    machine="A CPU",
    instructions=("AVX2",),
    threads=1,
    torch="2.14",
    cases=(
        BenchCase(
            name="deit_tiny at 224",
            model="deit_tiny",
            recipe="shiftaddvit",
            image_size=224,
            batch_size=8,
            mult_share=0.25,
            measurements=ROWS,
            comparison=compare(ROWS),
        ),
    ),
    growths=(
        Growth(
            model="deit_tiny",
            batch_size=8,
            side="dense",
            title="the eager",
            image_sizes=(224, 512),
            exponent=1.613,
        ),
    ),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line asked of `reparam.bench`."""
    arguments: dict[str, Any] = {}

    def bench(models: list[str], recipe: str | None, **options: Any) -> Bench:
        arguments.update(options, models=models, recipe=recipe)
        return BENCH

    monkeypatch.setitem(vars(reparam), "bench", bench)
    return arguments


def test_a_table_has_the_fastest_first_and_says_what_is_missing(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("bench", "deit_tiny", "--recipe", "shiftaddvit")
    assert answer.code == 0
    assert "deit_tiny, shiftaddvit, 224 pixels, batch 8" in answer.out
    lines = [line.split() for line in answer.out.splitlines()]
    first = lines.index(["converted:", "the", "int8", "50.0", "ms", "0.500", "ms", "160", "4.00x", "1.0e-02"])
    assert lines[first + 1] == ["dense:", "the", "openvino", "100", "ms", "0.500", "ms", "80.0", "2.00x", "1.0e-03"]
    assert "converted (the int8) is 2.00x faster than the best dense (the openvino)" in answer.out
    assert "routers sent 25% of the tokens to the multiply experts" in answer.out
    assert "skipped: nncf: nncf is not installed" in answer.out
    assert ["dense:", "the", "eager", "1.61", "224,", "512"] in lines
    assert "measured here: A CPU (AVX2), 1 thread, torch 2.14" in answer.out


def test_options_reach_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = "bench a b --recipe r --img-size 224,512 --img-size 1024 -b 1,8 --threads 2 --limit 5 --lowered int8+eager"
    assert run_cli(*line.split(), "--set", "x=1").code == 0
    assert (asked["models"], asked["recipe"]) == (["a", "b"], "r")
    assert (asked["img_size"], asked["batch_size"]) == ([224, 512, 1024], [1, 8])
    assert (asked["threads"], asked["limit"], asked["lowered"]) == (2, 5.0, "int8+eager")
    assert asked["overrides"] == ["x=1"]
    assert run_cli("bench", "a", "--out", "b.json", "--fresh").code == 0
    assert (asked["out"], asked["fresh"]) == (Path("b.json"), True)
    assert run_cli("bench", "a").code == 0
    assert (asked["img_size"], asked["batch_size"], asked["weights"]) == (None, [1], "none")


def test_json_is_the_record(run_cli: RunCli, asked: dict[str, Any]) -> None:
    assert json.loads(run_cli("bench", "a", "--json").out) == BENCH.model_dump(mode="json")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench deit_tiny", "give --recipe"),
        ("bench deit_tiny --recipe deepshift-q --img-size large", 'wanted numbers, got "large"'),
        ("bench deit_tiny --recipe deepshift-q --baselines onnx", 'unknown baseline "onnx"'),
        ("bench", "Missing argument"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(run_cli: RunCli, line: str, said: str) -> None:
    answer = run_cli(*line.split())
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
