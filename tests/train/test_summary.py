import csv
from pathlib import Path

from reparam.train.summary import Summary
from tests.train.reports import epoch_report


def rows(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["stage"], row["epoch"]) for row in csv.DictReader(file)]


def test_a_resumed_stage_keeps_the_rows_of_its_finished_epochs(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    before = Summary(path, stages=[])
    for stage, epoch in (("attention", 1), ("experts", 1), ("experts", 2), ("experts", 3)):
        before.epoch_finished(epoch_report(epoch, stage))
    resumed = Summary(path, stages=[])
    resumed.resume_at("experts", epochs=1)
    resumed.epoch_finished(epoch_report(2, "experts"))
    assert rows(path) == [("attention", "0"), ("experts", "0"), ("experts", "1")]
