"""`reparam.bench` with engines of the test and a clock that only counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.api import bench as bench_file
from reparam.cost import measure
from reparam.cost.baselines.base import Baseline, Run
from reparam.cost.rounds import Rounds
from reparam.cost.workload import Workload
from reparam.errors import CheckpointError, ModelError, OptionError, RecipeError, TrainError
from reparam.models.build import build_model, build_spec

FACTORY = """
from timm.models.vision_transformer import VisionTransformer

def tiny(img_size=16, num_classes=3):
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return VisionTransformer(img_size=img_size, num_classes=num_classes, **sizes)
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th run takes n milliseconds."""

    def time_in_turns(runs: Mapping[Any, Run], **options: Any) -> dict[Any, Rounds]:
        return {key: Rounds(means_ms=(1.0 + key, 1.0 + key), runs=2) for key in runs}

    monkeypatch.setattr(measure, "time_in_turns", time_in_turns)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(FACTORY, encoding="utf-8")
    return f"{path}:tiny"


def engine(name: str, *, by: float = 1.0) -> Baseline:
    """Runs the model and multiplies its answer, which is wrong unless `by` is 1."""

    def prepare(workload: Workload) -> Run:
        return lambda: by * workload.model(workload.batch)

    return Baseline(name=name, title=f"the {name}", dtype="int8", tolerance=0.1, in_torch=False, prepare=prepare)


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_file, "choose_lowered_engines", lambda names: (engine("swift"), engine("off", by=2.0)))


@pytest.mark.usefixtures("clock", "forms")
def test_every_size_and_batch_has_a_table_with_both_models_in_one_run(model: str) -> None:
    found = reparam.bench(model, "shiftaddvit", img_size=[32, 16], batch_size=[2, 1], baselines="eager", threads=1)
    assert [(case.image_size, case.batch_size) for case in found.cases] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    for case in found.cases:
        rows = {(m.side, m.engine): m.status for m in case.measurements}
        assert rows == {
            ("converted", "eager"): "measured",
            ("converted", "swift"): "measured",
            ("converted", "off"): "wrong",
            ("dense", "eager"): "measured",
        }
        assert case.mult_share == 1.0  # an untrained router multiplies
        assert case.recipe == "shiftaddvit"
        assert case.comparison is not None
        assert case.comparison.converted_title == "eager, fp32"
    assert found.instructions
    assert found.threads == 1


@pytest.mark.usefixtures("forms")
def test_the_growth_of_each_engine_is_fitted_over_the_sizes(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes as many milliseconds as the image has rows, so 0.5 is the exponent over pixels."""
    side = {"now": 0}

    def time_in_turns(runs: Mapping[Any, Run], **options: Any) -> dict[Any, Rounds]:
        side["now"] = 16 if not side["now"] else 64
        return {key: Rounds(means_ms=(float(side["now"]),), runs=1) for key in runs}

    monkeypatch.setattr(measure, "time_in_turns", time_in_turns)
    monkeypatch.setattr(Rounds, "iqr_ms", 0.0)
    found = reparam.bench(model, "deepshift-q", img_size=[16, 64], baselines="eager", threads=1)
    assert {(g.side, g.title): g.image_sizes for g in found.growths} == {
        ("converted", "eager, fp32"): (16, 64),
        ("converted", "the swift"): (16, 64),
        ("dense", "eager, fp32"): (16, 64),
    }
    assert [g.exponent for g in found.growths] == pytest.approx([0.5] * 3)
    assert all(case.mult_share is None for case in found.cases)


@pytest.mark.usefixtures("clock", "forms")
def test_an_engine_that_was_too_slow_is_not_tried_again_at_larger_sizes(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(0, 100_000, 9))  # nine seconds between two looks at the clock
    monkeypatch.setattr(measure, "perf_counter", lambda: next(times))
    found = reparam.bench(model, "deepshift-q", img_size=16, batch_size=[1, 2], baselines="eager", limit=40.0)
    first, second = ({m.engine: m for m in case.measurements if m.side == "converted"} for case in found.cases)
    assert first["swift"].reason == "one run takes 9 s, and more than 5 s are not waited for"
    assert second["swift"].reason == "it was too slow at a smaller size already"
    assert second["off"].status == "wrong"  # wrong is no question of size
    assert second["eager"].status == "measured"


@pytest.mark.usefixtures("clock", "forms")
def test_an_engine_that_was_too_slow_for_a_large_batch_is_tried_with_one_larger_image(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0, 0, 0, 0, 0, 9, 0, 0, *[0] * 20])  # two looks for each of two engines and case
    monkeypatch.setattr(measure, "perf_counter", lambda: next(times))
    found = reparam.bench(
        model, "deepshift-q", img_size=[16, 32], batch_size=[1, 2], baselines="eager", limit=40.0
    )  # fmt: skip
    statuses = [next(m.status for m in case.measurements if m.engine == "swift") for case in found.cases]
    assert statuses == ["measured", "skipped", "measured", "skipped"]


@pytest.mark.usefixtures("clock", "forms")
def test_a_call_that_was_stopped_goes_on_where_it_stopped(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[int, ...]] = []
    whole = bench_file.measure_batch

    def stops(batch: torch.Tensor, **options: Any) -> Any:
        if len(measured) == 1:
            measured.append((0,))
            raise KeyboardInterrupt
        measured.append(tuple(batch.shape))
        return whole(batch, **options)

    monkeypatch.setattr(bench_file, "measure_batch", stops)
    asked: dict[str, Any] = {"img_size": 16, "batch_size": [1, 2], "baselines": "eager", "out": tmp_path / "b.json"}
    with pytest.raises(KeyboardInterrupt):
        reparam.bench(model, "deepshift-q", **asked)
    assert not (tmp_path / "b.json").exists()
    found = reparam.bench(model, "deepshift-q", **asked)
    assert measured == [(1, 3, 16, 16), (0,), (2, 3, 16, 16)]
    assert reparam.Bench.model_validate_json((tmp_path / "b.json").read_bytes()) == found
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]  # the next call measures anew
    reparam.bench(model, "deepshift-q", **asked)
    assert len(measured) == 5


def test_the_result_is_a_json_file(model: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the result is a JSON file"):
        reparam.bench(model, "deepshift-q", out=tmp_path / "b.csv")


@pytest.mark.usefixtures("clock", "forms")
def test_a_run_is_measured_with_its_own_original(tmp_path: Path) -> None:
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    spec = build_spec("vit_tiny_patch16_224", num_classes=3, img_size=16, model_kwargs=sizes)
    torch.manual_seed(0)
    dense: nn.Module = build_model(spec)
    reparam.convert(dense, "deepshift-q", out=tmp_path / "run")
    found = reparam.bench(tmp_path / "run", baselines="eager", threads=1)
    (case,) = found.cases
    assert (case.model, case.recipe, case.image_size) == (str(tmp_path / "run"), "deepshift-q", 16)
    with pytest.raises(OptionError, match="is converted already"):
        reparam.bench(tmp_path / "run", "deepshift-q")
    with pytest.raises(OptionError, match="weights and image sizes are for models by name"):
        reparam.bench(tmp_path / "run", weights="hub")
    with pytest.raises(CheckpointError, match="wanted a run"):
        reparam.bench(tmp_path / "run" / "dense")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"models": []}, OptionError, "no model to measure"),
        ({"recipe": None}, RecipeError, "m: nothing says how to convert it; give --recipe"),
        ({"img_size": 0}, OptionError, "image size 0: wanted 1 or more"),
        ({"img_size": []}, OptionError, "no image size"),
        ({"batch_size": 0}, OptionError, "batch size 0"),
        ({"threads": 100_000}, OptionError, "threads 100000: wanted 1024 or fewer"),
        ({"device": "meta"}, TrainError, "nothing can be computed on meta here; say --device cpu"),
        ({"recipe": "deepshft-q"}, RecipeError, 'Did you mean "deepshift-q"'),
        ({"models": "runs/nowhere", "recipe": None}, ModelError, "there is no such file or folder"),
        ({"models": ["resnet18", "resnt18"]}, ModelError, 'model "resnt18" is unknown'),
        ({"limit": 0.0}, OptionError, "limit 0: wanted more than 0 seconds"),
        ({"baselines": "openvno"}, OptionError, 'unknown baseline "openvno"'),
        ({"lowered": "int4"}, OptionError, 'unknown way to run a converted model "int4"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_told_before_anything_is_built(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as raised:
        reparam.bench(**({"models": "m", "recipe": "deepshift-q"} | options))
    assert said in str(raised.value)
