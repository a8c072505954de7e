"""Histograms, overlays and outlines: what the template draws of the facts."""

from dataclasses import replace

from reparam.reporting.exponents import ExponentHistogram
from reparam.reporting.page.histograms import draw_histograms
from reparam.reporting.page.outline import Entry, outline
from reparam.reporting.page.overlay import draw_overlays, without_map
from reparam.reporting.page.training import routing_chart, training_charts
from reparam.reporting.page.words import DASH
from tests.reporting.page.facts import ROUTING, block, history, run, tree


def test_histograms_share_their_exponents_and_begin_with_all_layers() -> None:
    every, first, second = draw_histograms(run().exponents)
    assert [bar.label for bar in every.bars] == ["±2⁻³", "±2⁻²", "±2⁻¹", "0"]
    assert [bar.tip.partition(":")[2] for bar in every.bars] == [
        " 9.1 % (1)",
        " 18.2 % (2)",
        " 54.5 % (6)",
        " 18.2 % (2)",
    ]
    assert [bar.height for bar in first.bars] == [25, 0, 100, 50]
    assert [bar.height for bar in second.bars] == [0, 100, 100, 0]
    assert [bar.is_zero for bar in first.bars] == [False, False, False, True]


def test_layers_of_zeros_alone_have_no_histogram() -> None:
    assert draw_histograms([ExponentHistogram(path="a", bits=5, lowest=0, counts=(), zeros=3)]) == ()


def test_a_layer_of_zeros_stands_beside_others() -> None:
    zeros = ExponentHistogram(path="a", bits=5, lowest=0, counts=(), zeros=3)
    assert [bar.height for bar in draw_histograms([*run().exponents, zeros])[-1].bars] == [0, 0, 0, 100]


def test_overlays_cover_each_token_once() -> None:
    first, _ = draw_overlays(ROUTING)
    assert (first.width, first.height, first.prefix, first.share) == (3, 2, 1, "33\u00a0%")
    image = first.images[0]
    assert image.multiplied == "M0 0h2v1h-2zM1 1h2v1h-2z"
    assert image.shifted == "M2 0h1v1h-1zM0 1h1v1h-1z"
    assert first.images[1].multiplied == ""
    assert first.images[1].shifted == "M0 0h3v1h-3zM0 1h3v1h-3z"


def test_layers_without_a_grid_tell_why() -> None:
    assert without_map(ROUTING) == (("blocks.2.mlp", "'flip' stands in between"),)


def entries(entry: Entry) -> list[str]:
    return [f"{entry.name} x{entry.alike}", *(name for child in entry.children for name in entries(child))]


def test_neighbours_that_are_alike_are_one_line_and_others_are_not() -> None:
    folded = outline(tree(block("0"), block("1"), block("2", "moe_mlp"), block("3")))
    assert entries(folded) == [" x1", f"0 {DASH} 1 x2", "fc x1", "2 x1", "fc x1", "3 x1", "fc x1", "head x1"]
    assert dict(folded.holds) == {"shift_linear": 3, "moe_mlp": 1}
    assert dict(folded.children[0].holds) == {"shift_linear": 2}


def test_the_way_to_the_first_conversions_is_open() -> None:
    folded = outline(tree(block("0"), block("1"), block("2", "moe_mlp")))
    assert [entry.is_open for entry in folded.children] == [True, False, False]


def test_nothing_is_new_where_no_dense_model_is_at_hand() -> None:
    bare = tree().model_copy(update={"before": None})
    assert not outline(bare).is_new
    assert not outline(bare).children[0].is_new


def test_one_run_tells_all_its_loss_terms() -> None:
    loss, top1, rate = training_charts([run()])
    assert [line.name for line in loss.lines] == [
        "train, each log step", "task", "distillation", "features", "train, all terms", "evaluation",
    ]  # fmt: skip
    assert [level.name for level, _ in top1.levels] == ["dense 81.25\u00a0%"]
    assert rate.values["lines"][0]["points"] == [[0.5, 5e-4], [1.0, 2.5e-4]]


def test_a_loss_of_one_term_alone_is_one_line() -> None:
    (stage,) = history()
    epochs = tuple(replace(epoch, distill_loss=None, feature_loss=None) for epoch in stage.epochs)
    loss, _, _ = training_charts([run(history=(replace(stage, epochs=epochs),))])
    assert [line.name for line in loss.lines] == ["train, each log step", "train, all terms", "evaluation"]


def test_two_runs_share_the_axes_and_are_told_apart_by_name() -> None:
    loss, _, _ = training_charts([run(), run(name="other")])
    assert [line.name for line in loss.lines] == ["run: train", "run: evaluation", "other: train", "other: evaluation"]
    assert {line.colour for line in loss.lines if line.name.startswith("run")} == {"orange"}


def test_a_run_that_was_not_trained_has_no_curves() -> None:
    assert training_charts([run(history=())]) == ()
    assert routing_chart(run(history=())) is None


def test_each_router_has_its_line_and_the_target_a_level() -> None:
    chart = routing_chart(run())
    assert chart is not None
    assert chart.values["lines"][0]["points"] == [[1, 50.0], [2, 25.0]]
    assert [line.name for line in chart.lines] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert [level.name for level, _ in chart.levels] == ["target 40\u00a0%"]
