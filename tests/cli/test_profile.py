import json
from typing import Any

import pytest

import reparam
from reparam import Energy, Profile
from reparam.cost.energy_meter import MeasuredEnergy
from reparam.cost.expert_schedule import ExpertSchedule
from reparam.cost.latency import Latency
from reparam.cost.measurement import Measured, Measurement, Side, compare
from tests.cli.conftest import RunCli

Asked = list[tuple[str, dict[str, Any]]]


def timed(side: Side, engine: str, title: str, ms: float, *, iqr_ms: float = 0.125, **more: Any) -> Measurement:
    latency = Latency(
        median_ms=ms, iqr_ms=iqr_ms, runs=30, batch_size=8, threads=2, device="cpu", dtype="float32"
    )  # fmt: skip
    figures = {"latency": latency, "images_per_second": 8e3 / ms, **more}
    return Measurement(side=side, engine=engine, title=title, batch_size=8, status="measured", **figures)


def left_out(status: Any, engine: str, reason: str) -> Measurement:
    return Measurement(side="dense", engine=engine, title="", batch_size=8, status=status, reason=reason)


def measured(*, converted_ms: float = 12.5, iqr_ms: float = 0.125, energy: MeasuredEnergy | None = None) -> Measured:
    measurements = (
        timed("converted", "eager", "eager, fp32", converted_ms, iqr_ms=iqr_ms, peak_bytes=2_500_000, energy=energy),
        timed("dense", "eager", "eager, fp32", 10.0, peak_bytes=1_250_000),
        timed("dense", "compiled-bf16", "torch.compile, bf16", 5.0, error=0.013, tolerance=0.05),
        left_out("skipped", "onnxruntime", 'onnxruntime is not installed: pip install "reparam[bench]"'),
        left_out("failed", "compiled", "RuntimeError: no compiler"),
        left_out("wrong", "bf16", "its outputs differ from eager's by 2 of their size, more than 0.05"),
    )
    comparison = compare(measurements)
    assert comparison is not None
    schedule = ExpertSchedule(
        batch_size=8, shares="balanced", mult_share=0.4, sequential_ms=12.5, sequential="modelled", parallel_ms=11.0
    )  # fmt: skip
    return Measured(
        machine="AMD EPYC",
        threads=2,
        torch="2.14",
        measurements=measurements,
        comparisons=(comparison,),
        schedules=(schedule,),
        no_energy=None if energy else "no RAPL or NVML here",
    )


def counted(name: str, *, muls: int) -> Profile:
    return Profile(
        name=name,
        parameters=5_717_416,
        operations={"mul.f32": muls, "add.f32": 2000, "shift.f32": 4000 - muls},
        uncounted={} if name.endswith("dense") else {"aten.sin": 2},
        experts=None if name.endswith("dense") else "balanced",
        file_bytes=22_900_000,
        latency=None,
        modules=(),
        energies=(energy("horowitz-45nm", muls * 1e6), energy("mine", muls * 1e3)),
        int8_energies=(energy("horowitz-45nm", 5e8), energy("mine", 2e6)),
        is_converted=not name.endswith("dense") and name != "deit_tiny",
    )


def energy(table: str, picojoules: float) -> Energy:
    return Energy(table=table, picojoules=picojoules, by_operation={}, unpriced={"exp.f32": 3_212_676})


@pytest.fixture
def answer() -> dict[str, Any]:
    """What the profile of the stand-in API holds besides counts."""
    return {"measured": measured(), "dense": counted("run/dense", muls=4000)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]) -> Asked:
    calls: Asked = []

    def profile(source: str, *, progress: Any, **options: Any) -> Profile:
        progress.message("preparing torch.compile")
        calls.append((source, options))
        return counted(source, muls=1000).model_copy(update=answer)

    monkeypatch.setitem(vars(reparam), "profile", profile)
    return calls


def lines(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_defaults_ask_for_one_image_and_what_needs_no_compiler(run_cli: RunCli, asked: Asked) -> None:
    run_cli("profile", "run")
    assert asked == [
        (
            "run",
            {
                "batch_size": [1],
                "measure": True,
                "baselines": "quick",
                "threads": None,
                "device": None,
                "tables": None,
                "memory": None,
                "with_dense": True,
            },
        )
    ]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("-b 8", {"batch_size": [8]}),
        ("-b 1 -b 8", {"batch_size": [1, 8]}),
        ("--batch-size 1,8,64", {"batch_size": [1, 8, 64]}),
        ("--baselines eager,openvino --threads 2", {"baselines": "eager,openvino", "threads": 2}),
        ("--device cuda:1", {"device": "cuda:1"}),
        ("--no-latency --no-dense", {"measure": False, "with_dense": False}),
    ],
)
def test_options_are_passed_on(run_cli: RunCli, asked: Asked, line: str, wanted: dict[str, Any]) -> None:
    assert run_cli("profile", "run", *line.split()).code == 0
    assert wanted.items() <= asked[0][1].items()


def test_a_run_stands_beside_its_dense_original(run_cli: RunCli, asked: Asked) -> None:
    found = lines(run_cli("profile", "run").out)
    assert "multiplications 4.00 k 1.00 k 4.00x fewer" in found
    assert "shifts 0 3.00 k all new" in found
    assert "additions 2.00 k 2.00 k same" in found
    assert "weights on disk 22.9 MB 22.9 MB" in found
    assert "not counted in run: aten.sin=2" in found


def test_a_model_stands_alone_and_without_measurements_nothing_is_said_of_them(
    run_cli: RunCli, asked: Asked, answer: dict[str, Any]
) -> None:
    answer.clear()
    answer.update(measured=None, dense=None)
    out = run_cli("profile", "deit_tiny", "--no-latency").out
    assert lines(out)[:3] == ["deit_tiny", "model", "parameters 5.72 M"]
    assert "latency" not in out


def test_engines_stand_in_the_order_of_their_latency(run_cli: RunCli, asked: Asked) -> None:
    found = lines(run_cli("profile", "run").out)
    start = found.index("batch 8 latency spread images/s memory error")
    assert found[start + 1 : start + 4] == [
        "dense: torch.compile, bf16 5.00 ms 0.125 ms 1600 - 1.3e-02",
        "dense: eager, fp32 10.0 ms 0.125 ms 800 1.25 MB",
        "converted: eager, fp32 12.5 ms 0.125 ms 640 2.50 MB",
    ]


def test_slower_than_dense_is_said_in_red_and_in_bold_where_there_is_no_colour(
    run_cli: RunCli, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lines(run_cli("profile", "run").out)
    place = found.index("converted is 2.50x slower than the best dense (torch.compile, bf16)")
    assert found[place + 1] == "slower than dense here"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1;31mslower than dense here\x1b[0m" in run_cli("profile", "run").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1mslower than dense here\x1b[0m" in run_cli("profile", "run").out


def test_a_ratio_from_wide_spreads_is_called_uncertain(run_cli: RunCli, asked: Asked, answer: dict[str, Any]) -> None:
    assert "uncertain" not in run_cli("profile", "run").out
    answer["measured"] = measured(iqr_ms=5.0)
    assert "uncertain: the rounds spread by 40%, as on a machine that is busy" in run_cli("profile", "run").out


def test_faster_than_dense_is_said_and_nothing_of_slower(run_cli: RunCli, asked: Asked, answer: dict[str, Any]) -> None:
    answer["measured"] = measured(converted_ms=2.5)
    out = run_cli("profile", "run").out
    assert "converted is 2.00x faster than the best dense (torch.compile, bf16)" in out
    assert "slower" not in out


def test_every_baseline_without_figures_is_named_with_its_reason(run_cli: RunCli, asked: Asked) -> None:
    found = lines(run_cli("profile", "run").out)
    assert 'skipped: onnxruntime: onnxruntime is not installed: pip install "reparam[bench]"' in found
    assert "failed: compiled: RuntimeError: no compiler" in found
    assert "wrong: bf16: its outputs differ from eager's by 2 of their size, more than 0.05" in found


def test_each_figure_says_its_kind_and_where_it_was_measured(run_cli: RunCli, asked: Asked) -> None:
    out = " ".join(run_cli("profile", "run").out.split())
    assert "measured here: AMD EPYC, 2 threads, torch 2.14;" in out
    assert "balanced load 8 40% 12.5 ms modelled 11.0 ms modelled" in out
    assert "energy: not measured: no RAPL or NVML here" in out


def test_measured_energy_has_a_column(run_cli: RunCli, asked: Asked, answer: dict[str, Any]) -> None:
    energy = MeasuredEnergy(joules={"cpu package 0": 0.25, "dram 0": 0.125}, images=100, seconds=2.0)
    answer["measured"] = measured(energy=energy)
    out = run_cli("profile", "run").out
    assert "converted: eager, fp32 12.5 ms 0.125 ms 640 2.50 MB 0.375" in lines(out)
    assert "not measured" not in out


def test_json_is_the_profile_and_progress_goes_to_stderr(run_cli: RunCli, asked: Asked) -> None:
    answer = run_cli("profile", "run", "--json")
    assert Profile.model_validate(json.loads(answer.out)).measured == measured()
    assert json.loads(answer.out)["dense"]["name"] == "run/dense"
    assert answer.err == "preparing torch.compile\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-b x", 'wanted numbers, got "x"'),
        ("-b 1,,8", 'wanted numbers, got "1,,8"'),
        ("-b 0", "error: batch size 0: wanted 1 or more"),
        ("--threads 0", "error: threads 0: wanted 1 or more"),
        ("--baselines onxruntime", 'error: unknown baseline "onxruntime". Did you mean "onnxruntime"'),
    ],
)
def test_bad_input_is_one_sentence(run_cli: RunCli, line: str, words: str) -> None:
    answer = run_cli("profile", "no-such-model", *line.split())
    assert answer.code == 2
    assert words in answer.err
    assert answer.out == ""


def test_the_energy_stands_beside_the_dense_model_in_floats_and_in_int8(run_cli: RunCli, asked: Asked) -> None:
    out = lines(run_cli("profile", "run").out)
    assert "horowitz-45nm 4.00 mJ 500 uJ 1.00 mJ 2.00x" in out
    assert "mine 4.00 uJ 2.00 uJ 1.00 uJ 0.500x" in out
    assert "the dense model in int8 would take less, by horowitz-45nm" in out
    assert "without a price in horowitz-45nm, mine: 3.21 M exp.f32" in out


def test_a_model_that_is_no_run_has_no_conversion_to_compare(
    run_cli: RunCli, asked: Asked, answer: dict[str, Any]
) -> None:
    answer["dense"] = None
    out = lines(run_cli("profile", "deit_tiny").out)
    assert "horowitz-45nm 1.00 mJ 500 uJ" in out
    assert not any("would take less" in line for line in out)


def test_tables_and_memories_are_asked_for_by_name_and_memory_is_none_without(run_cli: RunCli, asked: Asked) -> None:
    run_cli("profile", "run")
    run_cli("profile", "run", "--table", "mine.toml", "--table", "ecoformer", "--weights-in", "dram")
    (_, plain), (_, chosen) = asked
    assert (plain["tables"], plain["memory"]) == (None, None)
    assert chosen["tables"] == ["mine.toml", "ecoformer"]
    assert chosen["memory"] == reparam.MemoryLevels(weights="dram", activations=None)
    out = " ".join(run_cli("profile", "run", "--activations-in", "dram").out.split())
    assert "moving activations in dram is priced, not that of weights" in out


def test_a_conversion_without_its_original_is_not_called_dense(
    run_cli: RunCli, asked: Asked, answer: dict[str, Any]
) -> None:
    answer["dense"] = None
    out = lines(run_cli("profile", "run", "--no-dense").out)
    assert "energy of one image converted" in out
    assert "horowitz-45nm 1.00 mJ" in out
