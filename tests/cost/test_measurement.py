from reparam.cost.latency import Latency
from reparam.cost.measurement import Measurement, Side, compare


def timed(side: Side, engine: str, ms: float | None, *, iqr_ms: float = 0.0) -> Measurement:
    latency = ms and Latency(
        median_ms=ms, iqr_ms=iqr_ms, runs=9, batch_size=4, threads=1, device="cpu", dtype="float32"
    )  # fmt: skip
    status = "measured" if latency else "failed"
    return Measurement(side=side, engine=engine, title=f"the {engine}", batch_size=4, status=status, latency=latency)


def test_a_converted_model_is_compared_with_the_fastest_dense_one() -> None:
    rows = [timed("converted", "eager", 12.0), timed("dense", "eager", 8.0), timed("dense", "compiled", 4.0)]
    found = compare(rows)
    assert found is not None
    assert (found.engine, found.title, found.batch_size) == ("compiled", "the compiled", 4)
    assert (found.dense_ms, found.converted_ms, found.ratio) == (4.0, 12.0, 3.0)


def test_of_a_converted_model_the_fastest_way_counts() -> None:
    rows = [timed("converted", "eager", 12.0), timed("converted", "int8", 2.0), timed("dense", "eager", 8.0)]
    found = compare(rows)
    assert found is not None
    assert (found.converted_title, found.converted_ms, found.ratio) == ("the int8", 2.0, 0.25)


def test_a_ratio_is_as_uncertain_as_the_wider_of_the_two_spreads() -> None:
    best, other = timed("dense", "compiled", 4.0, iqr_ms=1.0), timed("dense", "eager", 5.0, iqr_ms=5.0)
    for iqr_ms, wanted in ((1.0, 0.25), (6.0, 0.5)):
        found = compare([timed("converted", "eager", 12.0, iqr_ms=iqr_ms), best, other])
        assert found is not None
        assert found.spread == wanted


def test_a_baseline_without_figures_is_not_the_best() -> None:
    found = compare([timed("converted", "eager", 2.0), timed("dense", "eager", 8.0), timed("dense", "bf16", None)])
    assert found is not None
    assert (found.engine, found.ratio) == ("eager", 0.25)


def test_there_is_nothing_to_compare_with_one_side_alone() -> None:
    assert compare([timed("dense", "eager", 8.0), timed("dense", "compiled", 4.0)]) is None
    assert compare([timed("converted", "eager", 8.0), timed("dense", "eager", None)]) is None
