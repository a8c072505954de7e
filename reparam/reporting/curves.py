"""Curves of a run, drawn from its `metrics.jsonl`: loss, accuracy and learning rate, and where the tokens went.

The x-axis counts epochs over all stages. A stage begins where the one before ended, and its lines are its own.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reparam.reporting.epochs import Points, epochs_at, evaluated, over_epochs, stage_starts
from reparam.reporting.figure import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    new_figure,
    own_style,
    plain_axes,
    save_figure,
)
from reparam.train.metrics import METRICS_NAME, StageHistory, read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[StageHistory]
#: So many layers are named in the legend; of more, evenly spaced ones.
_NAMED_LAYERS = 12


def draw_curves(run: Path) -> tuple[Path, ...]:
    """Draws what the run has told so far and returns the files: `curves.png` and `.svg`, `routing.*` with routers.

    Raises:
        CheckpointError: `metrics.jsonl` is damaged, or a file cannot be written.
    """
    history = read_history(run / METRICS_NAME)
    if not history:
        return ()
    with own_style():
        files = save_figure(curves_figure(history), run / "curves")
        routing = routing_figure(history)
        return files if routing is None else (*files, *save_figure(routing, run / "routing"))


def curves_figure(history: History) -> "Figure":
    """Loss terms, top-1 with the dense original's, and learning rate, one under the other, over epochs."""
    figure = new_figure(width=7.5, height=8)
    loss, top1, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.6))
    plain_axes(loss, ylabel="loss")
    plain_axes(top1, ylabel="top-1 in %")
    plain_axes(rate, xlabel="epoch", ylabel="learning rate")
    stages = list(zip(history, stage_starts(history), strict=True))
    for stage, start in stages:
        _draw_loss(loss, stage, start)
        _draw_top1(top1, stage, start)
        points = [(start + epochs_at(stage, step.update), step.lr) for step in stage.steps]
        _line(rate, "lr", stage, points, colour=INK, marker="")
    _draw_dense(top1, history)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _finish((loss, top1, rate), stages)
    for axes in (loss, top1):
        _legend(axes)
    return figure


def routing_figure(history: History) -> "Figure | None":
    """Each layer's share of multiplied tokens over epochs, beside its target; None when no stage has routers."""
    layers = tuple(dict.fromkeys(name for stage in history for epoch in stage.epochs for name in epoch.mult_share))
    if not layers:
        return None
    figure = new_figure(width=7.5, height=4)
    axes = figure.subplots()
    plain_axes(axes, xlabel="epoch", ylabel="share of multiplied tokens in %")
    colours = dict(zip(layers, _shades(len(layers)), strict=True))
    stages = [
        (stage, start)
        for stage, start in zip(history, stage_starts(history), strict=True)
        if any(epoch.mult_share for epoch in stage.epochs)
    ]
    for stage, start in stages:
        for layer, colour in colours.items():
            points = [(start + e.epoch, 100 * e.mult_share[layer]) for e in stage.epochs if layer in e.mult_share]
            _line(axes, layer, stage, points, colour=colour)
    targets = _draw_targets(axes, history)
    axes.set_ylim(-2, 102)
    _finish((axes,), stages)
    _legend(axes, [*_evenly(layers, _NAMED_LAYERS), *targets])
    return figure


def _draw_loss(axes: "Axes", stage: StageHistory, start: float) -> None:
    steps = [(start + epochs_at(stage, step.update), step.loss) for step in stage.steps]
    _line(axes, "train, each log step", stage, steps, colour=BLUE, marker="", alpha=0.3)
    terms: dict[str, tuple[str, Sequence[float | None]]] = {
        "train": (BLUE, [epoch.train_loss for epoch in stage.epochs]),
        "task": (ORANGE, [epoch.task_loss for epoch in stage.epochs]),
        "distillation": (GREEN, [epoch.distill_loss for epoch in stage.epochs]),
        "features": (SKY, [epoch.feature_loss for epoch in stage.epochs]),
        "balance": (PURPLE, [epoch.balance_loss for epoch in stage.epochs]),
    }
    for name, (colour, values) in terms.items():
        _line(axes, name, stage, over_epochs(stage, start, values), colour=colour)
    _line(axes, "evaluation", stage, evaluated(stage, start, "loss"), colour=VERMILION)


def _draw_top1(axes: "Axes", stage: StageHistory, start: float) -> None:
    values = [epoch.train_top1 for epoch in stage.epochs]
    _line(axes, "train", stage, over_epochs(stage, start, values), colour=BLUE)
    _line(axes, "evaluation", stage, evaluated(stage, start, "top1"), colour=VERMILION)


def _draw_dense(axes: "Axes", history: History) -> None:
    dense = next((stage.report.dense for stage in reversed(history) if stage.report.dense is not None), None)
    if dense is not None:
        _level(axes, f"dense, {dense.top1:.2f} %", dense.top1)


def _draw_targets(axes: "Axes", history: History) -> list[str]:
    """A dashed line for each target, most often one; returns their names."""
    shares = dict.fromkeys(share for stage in history for share in stage.report.target_share.values())
    targets = {f"target, {100 * share:.0f} %": 100 * share for share in shares}
    for name, value in targets.items():
        _level(axes, name, value)
    return list(targets)


def _level(axes: "Axes", name: str, value: float) -> None:
    axes.axhline(value, color=INK, linestyle="--", linewidth=1.2, label=_as_label(name)).set_gid(name)


def _line(
    axes: "Axes",
    name: str,
    stage: StageHistory,
    points: Points,
    *,
    colour: object,
    marker: str = "o",
    alpha: float = 1.0,
) -> None:
    """Draws the points that have a value; the legend names a line once however many stages have it."""
    known = [(x, y) for x, y in points if y is not None]
    if not known:
        return
    labels = {line.get_label() for line in axes.get_lines()}
    (line,) = axes.plot(
        [x for x, _ in known],
        [y for _, y in known],
        color=colour,
        alpha=alpha,
        marker=marker if len(known) < 60 else "",
        markersize=3,
        linewidth=1.4,
        label="_nolegend_" if _as_label(name) in labels else _as_label(name),
    )
    line.set_gid(f"{name}@{stage.report.name}")


def _finish(panels: Sequence["Axes"], stages: Sequence[tuple[StageHistory, float]]) -> None:
    """Whole epochs on the x-axis, a line where a stage begins, and its name above the first panel."""
    from matplotlib.ticker import MaxNLocator

    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for _, start in stages:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=":")
    for stage, start in stages:
        panels[0].annotate(
            stage.report.name,
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, 3),
            textcoords="offset points",
            fontsize="small",
            color=INK,
            parse_math=False,
        )


def _legend(axes: "Axes", names: Iterable[str] | None = None) -> None:
    """A legend beside the axes, of all lines or of those with these names."""
    handles, labels = axes.get_legend_handles_labels()
    wanted = labels if names is None else [_as_label(name) for name in names]
    shown = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label in wanted]
    legend = axes.legend(
        [handle for handle, _ in shown],
        [label for _, label in shown],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
        fontsize="small",
        borderaxespad=0,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _as_label(name: str) -> str:
    """matplotlib hides lines whose label begins with an underscore, and a layer's path may."""
    return f" {name}"


def _shades(count: int) -> list[tuple[float, ...]]:
    """Colours from the first layer to the last; viridis stays readable without colour, its yellow end is left out."""
    import matplotlib

    viridis = matplotlib.colormaps["viridis"]
    return [viridis(0.9 * i / max(1, count - 1)) for i in range(count)]


def _evenly(names: Sequence[str], count: int) -> Sequence[str]:
    if len(names) <= count:
        return names
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]
