from pathlib import Path

from reparam.reporting.epochs import evaluated, over_epochs, stage_starts
from reparam.train.metrics import MetricsLog, StageHistory, read_history
from tests.train.reports import stage_report, step_report, tell


def history(folder: Path) -> tuple[StageHistory, ...]:
    log = MetricsLog(folder / "metrics.jsonl", stages=[])
    tell(log, stage_report(), epochs=2)
    log.stage_started(stage_report("experts", 1))
    log.step(step_report(1, 2))
    return read_history(folder / "metrics.jsonl")


def test_a_stage_starts_where_the_one_before_ended(tmp_path: Path) -> None:
    assert stage_starts(history(tmp_path)) == [0.0, 2.0]


def test_a_run_without_stages_has_no_starts() -> None:
    assert stage_starts(()) == []


def test_figures_of_epochs_stand_at_their_ends_and_evaluations_begin_before_them(tmp_path: Path) -> None:
    first, second = history(tmp_path)
    assert over_epochs(first, 0.0, [epoch.train_loss for epoch in first.epochs]) == [(1.0, 2.0), (2.0, 1.0)]
    assert evaluated(first, 5.0, "top1") == [(5.0, 40.0), (6.0, 71.0), (7.0, 72.0)]
    assert evaluated(second, 2.0, "top1") == [(2.0, 40.0)]
