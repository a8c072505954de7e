import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from reparam.errors import CheckpointError
from reparam.train.metrics import MetricsLog, read_history
from reparam.train.progress import EpochReport
from tests.train.reports import LAYERS, epoch_report, evaluation, stage_report, step_report, tell


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds(path: Path) -> list[tuple[str, str, int | None]]:
    return [(line["kind"], line["stage"], line.get("update")) for line in lines(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_each_report_is_a_line_as_soon_as_it_is_told(path: Path) -> None:
    log = MetricsLog(path, stages=["attention"])
    assert not path.exists()
    log.stage_started(stage_report())
    log.step(step_report(1, 2))
    assert kinds(path) == [("stage", "attention", None), ("step", "attention", 2)]
    log.epoch_finished(epoch_report(1))
    assert kinds(path)[2:] == [("epoch", "attention", 4)]


def test_a_step_line_holds_the_figures_and_the_mean_share(path: Path) -> None:
    log = MetricsLog(path, stages=[])
    log.stage_started(stage_report())
    log.step(step_report(2, 3, mult_share={"a": 0.5, "b": 0.75}))
    assert lines(path)[-1] == {
        "kind": "step",
        "stage": "attention",
        "epoch": 2,
        "step": 3,
        "update": 7,
        "loss": 3.0 / 7,
        "top1": 57.0,
        "lr": 1e-4 / 7,
        "images_per_second": 800.0,
        "mult_share": 0.625,
    }


def test_an_epoch_line_holds_every_field_of_its_report(path: Path) -> None:
    log, report = MetricsLog(path, stages=[]), epoch_report(2, mult_share={"a": 0.5, "b": 0.75})
    log.stage_started(stage_report())
    log.epoch_finished(report)
    line = lines(path)[-1]
    assert {field.name for field in fields(EpochReport)} <= line.keys()
    assert line["mult_share"] == {"a": 0.5, "b": 0.75}
    assert line["evaluation"]["top1"] == 72.0
    assert line["balance_loss"] is None


def test_what_was_told_is_read_back(path: Path) -> None:
    log = MetricsLog(path, stages=[])
    first, second = stage_report(), stage_report("experts", 1, target_share=dict.fromkeys(LAYERS, 0.4))
    tell(log, first, epochs=2)
    tell(log, second, epochs=1, shares=True)
    history = read_history(path)
    assert [stage.report for stage in history] == [first, second]
    assert history[0].epochs == (epoch_report(1), epoch_report(2))
    assert history[1].epochs[0].mult_share == {LAYERS[0]: 1 / 3, LAYERS[1]: 2 / 3}
    assert [step.update for step in history[0].steps] == [2, 4, 6, 8]
    assert asdict(history[1].steps[0])["mult_share"] == pytest.approx(0.5)
    assert [stage.updates for stage in history] == [8, 4]


def test_a_stage_that_is_trained_anew_loses_its_lines_and_no_others(path: Path) -> None:
    log = MetricsLog(path, stages=[])
    tell(log, stage_report(), epochs=1)
    tell(log, stage_report("experts", 1), epochs=1)
    MetricsLog(path, stages=["experts"])
    assert {line["stage"] for line in lines(path)} == {"attention"}


def test_a_stage_trained_anew_comes_back_in_the_order_of_the_recipe(path: Path) -> None:
    log = MetricsLog(path, stages=[])
    tell(log, stage_report(), epochs=1)
    tell(log, stage_report("experts", 1), epochs=1)
    tell(MetricsLog(path, stages=["attention"]), stage_report(), epochs=2)
    assert [(stage.report.name, len(stage.epochs)) for stage in read_history(path)] == [
        ("attention", 2),
        ("experts", 1),
    ]


def test_a_resumed_stage_keeps_what_its_state_has_behind_it(path: Path) -> None:
    tell(MetricsLog(path, stages=[]), stage_report(), epochs=3)
    log = MetricsLog(path, stages=[])
    log.resume_at("attention", updates=6, epochs=1)
    kept = [("step", 2), ("step", 4), ("epoch", 4), ("step", 6)]
    assert [(kind, update) for kind, _, update in kinds(path)[1:]] == kept
    log.stage_started(stage_report())
    log.step(step_report(2, 4))
    assert [(kind, update) for kind, _, update in kinds(path)] == [("stage", None), *kept, ("step", 8)]


def test_an_epoch_whose_steps_are_done_but_which_was_not_finished_is_told_again(path: Path) -> None:
    tell(MetricsLog(path, stages=[]), stage_report(), epochs=2)
    MetricsLog(path, stages=[]).resume_at("attention", updates=8, epochs=1)
    assert [(kind, update) for kind, _, update in kinds(path)[-2:]] == [("step", 6), ("step", 8)]


@pytest.mark.parametrize("torn", [b'{"kind": "step", "sta', b'{"kind": "step", "stage": "\xc3', b"{}"])
def test_a_torn_last_line_is_dropped(path: Path, torn: bytes) -> None:
    tell(MetricsLog(path, stages=[]), stage_report(), epochs=1)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(read_history(path)[0].steps) == 2
    log = MetricsLog(path, stages=[])
    assert path.read_bytes() == whole
    log.stage_started(stage_report())
    log.step(step_report(2, 2))
    assert kinds(path)[-1] == ("step", "attention", 6)


def test_a_damaged_line_in_the_middle_is_named(path: Path) -> None:
    path.write_text('{"kind": "step", "stage": "a"}\nwhat?\n{"kind": "step", "stage": "a"}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: .*move the file away"):
        MetricsLog(path, stages=[])


def test_lines_that_are_not_ours_are_refused(path: Path) -> None:
    path.write_text('{"kind": "step", "stage": "attention"}\n{"kind": "stage", "stage": "attention"}\n')
    with pytest.raises(CheckpointError, match="not as reparam writes it"):
        read_history(path)


def test_no_file_is_no_history(path: Path) -> None:
    assert read_history(path) == ()


def test_what_is_not_finite_is_valid_json_and_read_back(path: Path) -> None:
    log = MetricsLog(path, stages=[])
    log.stage_started(stage_report())
    log.epoch_finished(epoch_report(1, evaluation=evaluation(1.0, float("inf"))))

    def refuse(name: str) -> float:
        raise AssertionError(name)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert read_history(path)[0].epochs[0].evaluation.loss == float("inf")


def test_lines_survive_that_the_file_is_replaced_on_the_way(path: Path) -> None:
    log = MetricsLog(path, stages=[])
    log.stage_started(stage_report())
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    log.step(step_report(1, 2))
    assert len(lines(path)) == 2
