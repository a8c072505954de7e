import importlib.metadata
from pathlib import Path

import pytest

from reparam.errors import OptionError
from reparam.recipe.resolve import resolve_settings, tracker_names
from reparam.recipe.settings import TRACKERS
from reparam.train.metrics import MetricsLog
from reparam.train.progress import Fanout
from reparam.train.trackers import Trackers, check_trackers
from tests.train.reports import LAYERS, stage_report, tell

ROOT = Path(__file__).parents[2]


def train(run: Path, *stages: str, epochs: int = 1) -> None:
    """Tells trackers of stages that begin anew."""
    metrics = run / "metrics.jsonl"
    with Trackers(["tensorboard"], folder=run, metrics=metrics) as trackers:
        told = Fanout(MetricsLog(metrics, stages=stages), trackers)
        for stage in stages:
            index = ("attention", "experts").index(stage)
            tell(told, stage_report(stage, index), epochs=epochs, shares=stage == "experts")


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads TensorBoard's files with TensorBoard."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_back_what_was_told(tmp_path: Path) -> None:
    train(tmp_path, "attention", epochs=2)
    read = scalars(tmp_path)
    assert read["train/loss"] == [(u, pytest.approx(3.0 / u)) for u in (2, 4, 6, 8)]
    assert read["train/lr"] == [(u, pytest.approx(1e-4 / u)) for u in (2, 4, 6, 8)]
    assert read["eval/top1"] == [(4, 71.0), (8, 72.0)]
    assert read["epoch/distill_loss"] == [(4, 0.5), (8, 0.25)]
    assert read["epoch/feature_loss"] == [(4, 0.75), (8, 0.375)]
    assert not [tag for tag in read if "balance" in tag or "mult_share" in tag]


def test_the_steps_of_a_second_stage_follow_those_of_the_first(tmp_path: Path) -> None:
    train(tmp_path, "attention", "experts", epochs=2)
    read = scalars(tmp_path)
    assert [step for step, _ in read["train/loss"]] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert read[f"mult_share/{LAYERS[0]}"] == [(12, pytest.approx(1 / 3)), (16, pytest.approx(1 / 4))]
    assert [value for _, value in read["train/mult_share"]] == pytest.approx([1 / 2, 1 / 2, 3 / 8, 3 / 8])


def test_a_second_stage_alone_follows_the_first_one_of_the_run(tmp_path: Path) -> None:
    train(tmp_path, "attention", epochs=2)
    train(tmp_path, "experts")
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [2, 4, 6, 8, 10, 12]


def test_a_stage_trained_anew_replaces_what_was_shown_of_it(tmp_path: Path) -> None:
    train(tmp_path, "attention", epochs=3)
    train(tmp_path, "attention", epochs=1)
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [2, 4]


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    with Trackers([], folder=tmp_path, metrics=tmp_path / "metrics.jsonl") as trackers:
        tell(trackers, stage_report(), epochs=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(OptionError, match=rf"log_with: {name} is not installed; pip install 'reparam\[{name}\]'"):
        check_trackers([name])
    assert f"\n{name} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_misspelt_tracker_is_refused_with_the_closest_name() -> None:
    with pytest.raises(OptionError, match=r'"log_with": unknown tracker "tensorbord"\. Did you mean "tensorboard"'):
        resolve_settings({"log_with": "wandb,tensorbord"})


def test_an_unknown_tracker_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(OptionError, match=r'unknown tracker "mlflow"\. Known: tensorboard, wandb, trackio\.'):
        resolve_settings({"log_with": "mlflow"})


def test_names_are_split_at_commas_and_named_once() -> None:
    assert tracker_names(" wandb, tensorboard,,wandb ") == ("wandb", "tensorboard")
    assert tracker_names("") == ()
    assert resolve_settings({"log_with": "wandb, trackio"}).log_with == "wandb, trackio"
