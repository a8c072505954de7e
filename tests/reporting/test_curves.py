from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reparam.reporting import plots
from reparam.reporting.curves import curves_figure, draw_curves, routing_figure
from reparam.reporting.plots import Plots
from reparam.train.metrics import MetricsLog, StageHistory, read_history
from reparam.train.progress import Fanout, Progress, Silent
from tests.train.reports import LAYERS, epoch_report, stage_report, step_report, tell

pytest.importorskip("matplotlib")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two epochs of a first stage, then one of a second, with routers."""
    log = MetricsLog(tmp_path / "metrics.jsonl", stages=[])
    tell(log, stage_report(), epochs=2)
    tell(log, stage_report("experts", 1, target_share=dict.fromkeys(LAYERS, 0.4)), epochs=1, shares=True)
    return tmp_path


@pytest.fixture
def history(run: Path) -> tuple[StageHistory, ...]:
    return read_history(run / "metrics.jsonl")


def drawn(figure: Any, axis_label: str) -> dict[str, list[tuple[float, float]]]:
    """The points of each line in the panel whose y-axis is labelled so."""
    (axes,) = [axes for axes in figure.axes if axes.get_ylabel() == axis_label]
    return {line.get_gid(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines() if line.get_gid()}


def test_the_loss_terms_are_those_on_record(history: tuple[StageHistory, ...]) -> None:
    lines = drawn(curves_figure(history), "loss")
    assert lines["train@attention"] == [(1, 2.0), (2, 1.0)]
    assert lines["task@attention"] == [(1, 1.5), (2, 0.75)]
    assert lines["distillation@attention"] == [(1, 0.5), (2, 0.25)]
    assert lines["features@attention"] == [(1, 0.75), (2, 0.375)]
    assert lines["evaluation@attention"] == [(0, 2.0), (1, 1.0), (2, 0.5)]
    assert lines["train, each log step@attention"] == [(u / 4, 3.0 / u) for u in (2, 4, 6, 8)]
    assert not [name for name in lines if name.startswith("balance")]


def test_a_term_that_is_on_is_drawn(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", stages=[])
    log.stage_started(stage_report())
    log.epoch_finished(epoch_report(1, distill_loss=None, balance_loss=0.125))
    lines = drawn(curves_figure(read_history(tmp_path / "metrics.jsonl")), "loss")
    assert lines["balance@attention"] == [(1, 0.125)]
    assert "distillation@attention" not in lines


def test_a_stage_begins_where_the_one_before_ended(history: tuple[StageHistory, ...]) -> None:
    lines = drawn(curves_figure(history), "top-1 in %")
    assert lines["evaluation@attention"] == [(0, 40.0), (1, 71.0), (2, 72.0)]
    assert lines["evaluation@experts"] == [(2, 40.0), (3, 71.0)]
    assert lines["train@experts"] == [(3, 61.0)]


def test_the_dense_accuracy_is_a_dashed_line(history: tuple[StageHistory, ...]) -> None:
    figure = curves_figure(history)
    (dense,) = [line for axes in figure.axes for line in axes.get_lines() if line.get_gid() == "dense, 81.25 %"]
    assert set(dense.get_ydata()) == {81.25}
    assert dense.get_linestyle() == "--"


def test_the_learning_rate_is_that_of_each_log_step(history: tuple[StageHistory, ...]) -> None:
    lines = drawn(curves_figure(history), "learning rate")
    assert lines["lr@experts"] == [(2 + u / 4, 1e-4 / u) for u in (2, 4)]


def test_stages_are_named_and_the_legend_names_a_line_once(history: tuple[StageHistory, ...]) -> None:
    loss = curves_figure(history).axes[0]
    assert [text.get_text() for text in loss.texts] == ["attention", "experts"]
    named = [text.get_text().strip() for text in loss.get_legend().get_texts()]
    assert named == ["train, each log step", "train", "task", "distillation", "features", "evaluation"]


def test_each_router_has_a_line_beside_its_target(history: tuple[StageHistory, ...]) -> None:
    figure = routing_figure(history)
    assert figure is not None
    lines = drawn(figure, "share of multiplied tokens in %")
    assert lines[f"{LAYERS[0]}@experts"] == [(3, pytest.approx(100 / 3))]
    assert lines[f"{LAYERS[1]}@experts"] == [(3, pytest.approx(200 / 3))]
    assert {y for _, y in lines["target, 40 %"]} == {40.0}
    assert len(lines) == 3


def test_without_routers_there_is_no_picture_of_them(tmp_path: Path) -> None:
    tell(MetricsLog(tmp_path / "metrics.jsonl", stages=[]), stage_report(), epochs=1)
    assert routing_figure(read_history(tmp_path / "metrics.jsonl")) is None
    draw_curves(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "curves.png", "curves.svg"}


def test_many_layers_are_drawn_but_not_all_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", stages=[])
    log.stage_started(stage_report())
    log.epoch_finished(epoch_report(1, mult_share={f"_blocks.{i}": i / 40 for i in range(40)}))
    figure = routing_figure(read_history(tmp_path / "metrics.jsonl"))
    assert figure is not None
    named = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert len(named) == 12
    assert (named[0], named[-1]) == ("_blocks.0", "_blocks.39")
    assert len(drawn(figure, "share of multiplied tokens in %")) == 40


def test_the_files_are_pictures_and_the_same_each_time(run: Path) -> None:
    files = draw_curves(run)
    assert [file.name for file in files] == ["curves.png", "curves.svg", "routing.png", "routing.svg"]
    first = [file.read_bytes() for file in files]
    assert first[0].startswith(b"\x89PNG")
    assert b"<svg" in first[1]
    assert b"dc:date" not in first[1]
    assert all(len(content) < 200_000 for content in first)
    assert [file.read_bytes() for file in draw_curves(run)] == first


def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", stages=[])
    tell(log, stage_report("$x^{$"), epochs=1)
    draw_curves(tmp_path)
    assert "$x^{$" in (tmp_path / "curves.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_in_the_middle_of_its_first_epoch_is_drawn(tmp_path: Path, steps: int) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", stages=[])
    log.stage_started(stage_report())
    for step in range(steps):
        log.step(step_report(1, step + 1))
    draw_curves(tmp_path)
    lines = drawn(curves_figure(read_history(tmp_path / "metrics.jsonl")), "loss")
    assert lines["evaluation@attention"] == [(0, 2.0)]
    assert len(lines) == 1 + steps


def test_a_run_that_told_nothing_has_no_curves(tmp_path: Path) -> None:
    assert draw_curves(tmp_path) == ()


class Messages(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def listen(run: Path, progress: Progress, clock: Iterator[float]) -> Fanout:
    log = MetricsLog(run / "metrics.jsonl", stages=[])
    return Fanout(log, Plots(run, progress, clock=lambda: next(clock)))


def note_drawings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Draws nothing and notes after which update it would."""
    drawn_at: list[int] = []

    def note(run: Path) -> None:
        drawn_at.append(read_history(run / "metrics.jsonl")[0].updates)

    monkeypatch.setattr(plots, "draw_curves", note)
    return drawn_at


def test_curves_are_drawn_at_the_end_of_a_stage_and_not_after_each_short_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_at: list[int] = []
    monkeypatch.setattr(
        plots, "draw_curves", lambda run: drawn_at.append(read_history(run / "metrics.jsonl")[0].updates)
    )
    tell(listen(tmp_path, Silent(), iter(float(t) for t in range(100))), stage_report(), epochs=3)
    assert drawn_at == [12]


def test_curves_are_drawn_after_each_long_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_at: list[int] = []
    monkeypatch.setattr(
        plots, "draw_curves", lambda run: drawn_at.append(read_history(run / "metrics.jsonl")[0].updates)
    )
    tell(listen(tmp_path, Silent(), iter(60.0 * t for t in range(100))), stage_report(), epochs=3)
    assert drawn_at == [4, 8, 12]


def test_without_matplotlib_the_run_goes_on_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "can_draw", lambda: False)
    messages = Messages()
    listener = listen(tmp_path, messages, iter(range(100)))
    tell(listener, stage_report(), epochs=3)
    tell(listener, stage_report("experts", 1), epochs=3)
    assert messages.texts == ["matplotlib is not installed, so no curves are drawn; pip install 'reparam[plots]'"]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
