"""Training curves and routing over epochs, of one run or of two on the same axes."""

from collections.abc import Callable, Sequence

from reparam.reporting.epochs import Points, epochs_at, evaluated, over_epochs, stage_starts
from reparam.reporting.page import words
from reparam.reporting.page.chart import Chart, Level, Line, Point, make_chart
from reparam.reporting.page.records import RunFacts
from reparam.train.metrics import StageHistory

#: Colours of the first and the second run.
_RUNS = ("orange", "blue")
#: Term of the loss -> its figure in an epoch's report, and its colour.
_TERMS = {
    "task": ("task_loss", "green"),
    "distillation": ("distill_loss", "violet"),
    "features": ("feature_loss", "sky"),
    "balance": ("balance_loss", "grey"),
}


def training_charts(runs: Sequence[RunFacts]) -> tuple[Chart, ...]:
    """Loss, top-1 and learning rate over epochs; of two runs only the lines that can be told apart."""
    told = [run for run in runs if run.history]
    marks = _marks(told[0]) if len(told) == 1 else ()
    epochs = max((_epochs(run) for run in told), default=0.0)
    named = [(run, f"{run.name}: " if len(told) > 1 else "", colour) for run, colour in zip(told, _RUNS, strict=False)]
    losses = [line for run, name, colour in named for line in _losses(run, name, colour, is_alone=len(told) == 1)]
    accuracies = [line for run, name, colour in named for line in _accuracies(run, name, colour)]
    rates = [
        _line(run, f"{name}learning rate", colour if name else "blue", _rates, has_dots=False)
        for run, name, colour in named
    ]
    charts = (
        make_chart("loss", losses, epochs=epochs, marks=marks),
        make_chart("top-1, %", accuracies, epochs=epochs, levels=_dense(told), marks=marks),
        make_chart("learning rate", rates, epochs=epochs, marks=marks),
    )
    return tuple(chart for chart in charts if chart is not None)


def routing_chart(run: RunFacts) -> Chart | None:
    """The share of multiplied tokens of each router over epochs, beside its target; None without routers."""
    layers = dict.fromkeys(name for stage in run.history for epoch in stage.epochs for name in epoch.mult_share)
    targets = dict.fromkeys(share for stage in run.history for share in stage.report.target_share.values())
    lines = [
        _line(run, layer.removesuffix(".router"), _shade(i, len(layers)), _shares(layer))
        for i, layer in enumerate(layers)
    ]
    return make_chart(
        "multiplied tokens, %",
        lines,
        levels=[Level(name=f"target {words.share(share)}", y=100 * share) for share in targets],
        epochs=_epochs(run),
        marks=_marks(run),
        y_range=(0, 100),
    )


def _losses(run: RunFacts, name: str, colour: str, *, is_alone: bool) -> list[Line]:
    if not is_alone:
        return [
            _line(run, f"{name}train", colour, _each("train_loss"), is_dashed=True),
            _line(run, f"{name}evaluation", colour, _evaluated("loss")),
        ]
    steps = _line(run, "train, each log step", "blue", _step_losses, has_dots=False, is_faint=True)
    terms = [_line(run, term, shade, _each(figure)) for term, (figure, shade) in _TERMS.items()]
    told = [term for term in terms if any(term.pieces)]
    return [
        steps,
        *(told if len(told) > 1 else []),  # one term is the whole loss, and would lie under its line
        _line(run, "train, all terms", "blue", _each("train_loss")),
        _line(run, "evaluation", "orange", _evaluated("loss")),
    ]


def _accuracies(run: RunFacts, name: str, colour: str) -> list[Line]:
    train = "blue" if not name else colour
    return [
        _line(run, f"{name}train", train, _each("train_top1"), is_dashed=bool(name)),
        _line(run, f"{name}evaluation", colour, _evaluated("top1")),
    ]


def _line(
    run: RunFacts,
    name: str,
    colour: str,
    points: Callable[[StageHistory, float], Points],
    *,
    is_dashed: bool = False,
    is_faint: bool = False,
    has_dots: bool = True,
) -> Line:
    """One line over all stages, interrupted between them."""
    stages = zip(run.history, stage_starts(run.history), strict=True)
    pieces = tuple(_known(points(stage, start)) for stage, start in stages)
    return Line(name=name, colour=colour, pieces=pieces, is_dashed=is_dashed, is_faint=is_faint, has_dots=has_dots)


def _known(points: Points) -> list[Point]:
    return [(x, y) for x, y in points if y is not None]


def _each(figure: str) -> Callable[[StageHistory, float], Points]:
    return lambda stage, start: over_epochs(stage, start, [getattr(epoch, figure) for epoch in stage.epochs])


def _shares(layer: str) -> Callable[[StageHistory, float], Points]:
    return lambda stage, start: [
        (start + epoch.epoch, 100 * epoch.mult_share[layer]) for epoch in stage.epochs if layer in epoch.mult_share
    ]


def _evaluated(figure: str) -> Callable[[StageHistory, float], Points]:
    return lambda stage, start: evaluated(stage, start, figure)


def _step_losses(stage: StageHistory, start: float) -> Points:
    return [(start + epochs_at(stage, step.update), step.loss) for step in stage.steps]


def _rates(stage: StageHistory, start: float) -> Points:
    return [(start + epochs_at(stage, step.update), step.lr) for step in stage.steps]


def _epochs(run: RunFacts) -> float:
    """Epochs behind all stages."""
    if not run.history:
        return 0.0
    return stage_starts(run.history)[-1] + epochs_at(run.history[-1], run.history[-1].updates)


def _marks(run: RunFacts) -> list[tuple[float, str]]:
    """Where each stage begins."""
    return [(start, stage.report.name) for stage, start in zip(run.history, stage_starts(run.history), strict=True)]


def _dense(runs: Sequence[RunFacts]) -> list[Level]:
    figures = dict.fromkeys(run.dense_evaluation.top1 for run in runs if run.dense_evaluation is not None)
    return [Level(name=f"dense {words.percent(top1)}", y=top1) for top1 in figures]


def _shade(i: int, count: int) -> str:
    """From violet to green-yellow with the depth of the layer; the same lightness in both themes, so both show it."""
    place = i / max(1, count - 1)
    return f"hsl({280 - 220 * place:.0f} 62% {46 + 6 * place:.0f}%)"
