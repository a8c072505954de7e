import json
from pathlib import Path
from typing import Any

import pytest

import reparam
from reparam.exporting.base import EngineCheck, Exported, ExportedPart
from tests.cli.conftest import RunCli

EXPORTED = Exported(
    format="packed",
    out="runs/x/packed",
    file_bytes=3_515_312,
    parts=(ExportedPart(kind="shift weights", form="4 bits", tensors=48, before=21_233_664, after=2_654_208),),
    notes=("left as they are, because float16 cannot hold their values: cls_token",),
    source_bytes=22_913_496,
    dense_bytes=22_884_000,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line asked of `reparam.export`."""
    arguments: dict[str, Any] = {}

    def export(source: str, format: str, **options: Any) -> Exported:
        options.pop("progress").message("tracing")
        arguments.update(options, source=source, format=format)
        return EXPORTED

    monkeypatch.setitem(vars(reparam), "export", export)
    return arguments


def test_sizes_are_shown_by_kind_and_beside_the_files_they_come_from(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("export", "runs/x", "--format", "packed")
    assert answer.code == 0
    rows = [line.split() for line in answer.out.splitlines()]
    assert ["shift", "weights", "48", "21.2", "MB", "2.65", "MB", "4", "bits"] in rows
    assert "wrote runs/x/packed, weights of 3.52 MB" in answer.out
    assert "0.153x the run's weights, 22.9 MB" in answer.out
    assert "0.154x its dense original's, 22.9 MB" in answer.out
    assert "float16 cannot hold their values: cls_token" in answer.out


def test_only_options_that_were_given_are_passed_on(run_cli: RunCli, asked: dict[str, Any]) -> None:
    assert run_cli("export", "runs/x", "--format", "packed").code == 0
    assert asked == {"source": "runs/x", "format": "packed", "out": None}
    line = "export runs/x --format packed --out here --floats bf16 --experts int8"
    assert run_cli(*line.split()).code == 0
    assert asked["out"] == Path("here")
    assert (asked["floats"], asked["experts"]) == ("bf16", "int8")


def test_options_of_programs_and_the_images_to_check_on_are_passed_on(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = "export runs/x --format onnx --fixed-batch -b 4 --opset 20 --tolerance 0.1 --images 8 --data-dir d"
    assert run_cli(*line.split()).code == 0
    del asked["source"], asked["out"]
    assert asked == {
        "format": "onnx",
        "dynamic_batch": False,
        "batch_size": 4,
        "opset": 20,
        "tolerance": 0.1,
        "images": 8,
        "data": reparam.DataSettings(data_dir="d"),
    }
    run_cli(*["export", "runs/x", "--format", "pt2", "--compile", "--dynamic-batch"])
    assert (asked["compile"], asked["dynamic_batch"]) == (True, True)


def test_checks_are_shown_one_row_for_each_engine(
    run_cli: RunCli, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"images": 32, "data": "d", "top1_agreement": 96.875, "relative_error": 2e-6, "max_abs_error": 0.5}
    checks = (EngineCheck(engine="ONNX Runtime 1.32", **figures), EngineCheck(engine="OpenVINO", skipped="not here"))
    exported = Exported(format="onnx", out="m.onnx", file_bytes=2_000_000, checks=checks)
    monkeypatch.setitem(vars(reparam), "export", lambda *_, **__: exported)
    out = run_cli("export", "runs/x", "--format", "onnx").out
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "checked in images same class relative error largest error",
        "ONNX Runtime 1.32 32 96.88 % 2.0e-06 5.0e-01",
        "OpenVINO: skipped, not here",
        "wrote m.onnx, 2.00 MB",
    ]


def test_json_is_the_record(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("export", "runs/x", "--format", "packed", "--json")
    assert answer.err == "tracing\n"
    assert json.loads(answer.out) == EXPORTED.model_dump(mode="json")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("export runs/absent --format packed", "runs/absent: there is no such folder"),
        ("export runs/absent --format paked", 'unknown export format "paked". Did you mean "packed"?'),
        ("export runs/absent --format packed --floats half", "format packed, option floats"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run_cli: RunCli, line: str, said: str) -> None:
    answer = run_cli(*line.split())
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
