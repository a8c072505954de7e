"""`reparam.report` on a run that was really converted and trained, against what is in its folder."""

import base64
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import reparam
from reparam.api.report import report
from reparam.api.run_facts import gather_run
from reparam.errors import CheckpointError, DataError, OptionError
from reparam.ops.site import TokenGrid
from reparam.recipe.data_settings import DataSettings
from reparam.reporting.page.records import Missing, RoutingFacts
from reparam.train.progress import Silent
from tests.tradeoff.stand_ins import found_of, site

MODEL = "vit_tiny_patch16_224"
SHAPE: dict[str, Any] = {
    "num_classes": 3,
    "img_size": 8,
    "in_chans": 1,
    "model_kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 12, "workers": 0, "lr": 1e-3, "no_aug": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: DataSettings) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("runs") / "trained"
    reparam.convert(MODEL, "shiftaddvit", weights="none", out=out, **SHAPE)
    reparam.finetune(out, data=data, settings=QUICK, device="cpu")
    return out


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "converted"
    reparam.convert(MODEL, "deepshift-q", weights="none", out=out, **SHAPE)
    return out


def gather(folder: Path, **options: Any) -> Any:
    given = {"data": None, "images": 4, "measure": False, "base": None, "progress": Silent(), **options}
    return gather_run(folder, **given)


def test_the_page_lies_in_the_run_and_its_size_is_told(run: Path) -> None:
    made = report(run, measure=False)
    assert made.out == run / "report.html"
    assert made.out.stat().st_size == made.file_bytes
    text = made.out.read_text(encoding="utf-8")
    assert "reparam convert vit_tiny_patch16_224" in text
    assert [section.section for section in made.missing] == ["sensitivity"]


def test_figures_are_those_of_profile_and_accuracies_those_of_finetune(run: Path) -> None:
    facts, evaluation = gather(run), json.loads((run / "evaluate.json").read_text())
    profiled = reparam.profile(run, measure=False)
    assert facts.model_figures.operations == profiled.operations
    assert facts.model_figures.file_bytes == profiled.file_bytes
    assert facts.dense.operations == reparam.profile(run / "dense", measure=False).operations
    assert facts.evaluation.top1 == evaluation["top1"]
    told = json.loads((run / "finetune.json").read_text())
    assert facts.dense_evaluation.top1 == told["dense"]["top1"]
    assert [score.best.top1 for score in facts.stages] == [stage["best"]["top1"] for stage in told["stages"]]


def test_costs_by_module_lose_nothing(run: Path) -> None:
    figures = gather(run).model_figures
    for key, total in figures.operations.items():
        assert sum(counts.get(key, 0) for _, counts in figures.modules) == pytest.approx(
            total, abs=len(figures.modules)
        )


def test_the_images_are_the_evaluation_images_evenly_spaced(run: Path, data: DataSettings) -> None:
    """Six images of each of three classes, sorted: four of eighteen are the first of every four and a half."""
    routing = gather(run).routing
    assert isinstance(routing, RoutingFacts)
    paths = sorted((Path(str(data.data_dir)) / "validation").glob("*/*.png"))
    for image, index in zip(routing.images, (0, 4, 9, 13), strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(image.uri.partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(Image.open(paths[index])))
        assert image.truth == paths[index].parent.name
    assert [len(layer.multiplied) for layer in routing.layers] == [4, 4]
    assert {layer.grid for layer in routing.layers} == {TokenGrid(prefix=1, height=2, width=2)}


def test_a_stage_of_a_run_stands_beside_the_runs_original(run: Path) -> None:
    (stage,) = run.glob("stage-0-*")
    facts = gather(stage)
    assert facts.dense.operations == gather(run).dense.operations
    assert facts.tree.before == "VisionTransformer"


def test_a_run_that_was_only_converted_says_what_is_missing(untrained: Path) -> None:
    facts = gather(untrained)
    assert facts.history == ()
    assert isinstance(facts.routing, Missing)
    assert facts.routing.command is None
    assert "no mixtures" in facts.routing.why


def test_without_images_the_command_asks_for_them(run: Path) -> None:
    routing = gather(run, images=0).routing
    assert isinstance(routing, Missing)
    assert routing.why == "Left out by --images 0"
    assert routing.command == f"reparam report {run} --data-dir DATA"


def test_images_that_are_gone_are_named(run: Path, data: DataSettings, tmp_path: Path) -> None:
    folder = Path(str(data.data_dir))
    folder.rename(tmp_path / "moved")
    try:
        routing = gather(run).routing
    finally:
        (tmp_path / "moved").rename(folder)
    assert isinstance(routing, Missing)
    assert routing.why == f"{folder}, where it was trained, is gone"
    assert routing.command == f"reparam report {run} --data-dir DATA"


def test_more_images_than_there_are_say_so(run: Path) -> None:
    told: list[str] = []

    class Listener(Silent):
        def message(self, text: str) -> None:
            told.append(text)

    assert len(gather(run, images=100_000, progress=Listener()).routing.images) == 18
    assert f"routing 18 images through {run}, all that there are of the 100000 asked for" in told


def test_measured_shares_leave_no_remark_on_modelled_ones(run: Path) -> None:
    """The same run says so before it was evaluated."""
    assert "modelled" not in gather(run).tree.model_dump_json()
    evaluation = run / "evaluate.json"
    aside = evaluation.rename(run / "aside.json")
    try:
        assert "of tokens multiplied: modelled" in gather(run).tree.model_dump_json()
    finally:
        aside.rename(evaluation)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "page.txt", "notes.html"])
def test_only_a_page_is_replaced(run: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    if not (copy / name).exists():
        (copy / name).write_text("mine")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"ends in \.html|is no report"):
        report(copy, out=copy / name, measure=False)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_page_takes_the_place_of_another(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.HTM"
    out.write_text("<!DOCTYPE html><p>old")
    assert report(run, out=out, measure=False, images=0).out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_commands_quote_folders_and_a_dense_model_is_asked_for_a_recipe(run: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "my run"
    shutil.copytree(run / "dense", spaced)
    (section,) = [s for s in report(spaced, measure=False).missing if s.section == "sensitivity"]
    assert section.command is not None
    words = shlex.split(section.command)
    assert words == ["reparam", "sensitivity", str(spaced), "--recipe", "RECIPE", "--data-dir", "DATA"]


def test_a_dense_checkpoint_has_a_page_too(run: Path, tmp_path: Path) -> None:
    assert report(run / "dense", out=tmp_path / "dense.html", measure=False).out.is_file()


def test_two_runs_share_a_page(run: Path, untrained: Path, tmp_path: Path) -> None:
    made = report(run, untrained, out=tmp_path / "both.html", measure=False)
    text = made.out.read_text(encoding="utf-8")
    assert re.findall(r"<h1>(.*?)</h1>", text) == ["trained", "converted"]
    assert not (untrained / "report.html").exists()


def test_a_sensitivity_analysis_is_read_as_the_command_wrote_it(untrained: Path) -> None:
    path = untrained / "sensitivity.json"
    path.write_text(found_of(site("blocks.0", 0.1, 2.5)).model_dump_json())
    try:
        (loss,) = gather(untrained).sensitivity
        assert (loss.path, loss.operator, loss.top1_drop, loss.kl) == ("blocks.0", "shift_linear", 2.5, 0.1)
        path.write_text('{"sites": [{"path": 3}]}')
        with pytest.raises(CheckpointError, match=r"sensitivity\.json: this is no result of `reparam sensitivity`"):
            gather(untrained)
    finally:
        path.unlink()


def test_nothing_is_written_when_something_is_wrong(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(DataError, match="no such folder"):
        report(run, out=out, data=DataSettings(data_dir=str(tmp_path / "gone")), measure=False)
    with pytest.raises(CheckpointError, match="no such folder"):
        report(run, tmp_path / "nowhere", out=out)
    with pytest.raises(OptionError, match="images: wanted at least 0"):
        report(run, out=out, images=-1)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Wanted a folder that reparam convert"):
        report(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_evaluation_is_named(untrained: Path) -> None:
    path = untrained / "evaluate.json"
    path.write_text("{}")
    try:
        with pytest.raises(CheckpointError, match=r"evaluate\.json is not what reparam wrote; remove it, or run:"):
            gather(untrained)
    finally:
        path.unlink()


def test_latencies_are_measured_when_asked_for(untrained: Path) -> None:
    facts = gather(untrained, measure=True)
    assert facts.model_figures.latency.median_ms > 0
    assert facts.dense.latency.median_ms > 0
