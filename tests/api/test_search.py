import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import reparam
from reparam.api.convert import convert
from reparam.api.profile import profile
from reparam.api.search import search
from reparam.api.sensitivity import sensitivity
from reparam.checkpoint.load import load
from reparam.errors import BudgetError, CheckpointError, CostError
from reparam.recipe.data_settings import DataSettings
from reparam.tradeoff.outcome import SearchResult
from reparam.tradeoff.records import Sensitivity
from tests.train.pico import draw_folder

MODEL = "vit_tiny_patch16_224"
SHAPE: dict[str, Any] = {
    "num_classes": 3,
    "img_size": 8,
    "in_chans": 1,
    "model_kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
RECIPES = ("shiftaddvit", "ladder-shift-mlp")
EXAMPLE = torch.zeros(2, 1, 8, 8)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sensitivity", "search"):
        monkeypatch.setattr(f"reparam.api.{module}.can_draw", lambda: "chart" in request.node.name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("runs") / "shiftaddvit"
    convert(MODEL, "shiftaddvit", weights="none", out=out, **SHAPE)
    return out


@pytest.fixture(scope="module")
def found(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    images = draw_folder(tmp_path_factory.mktemp("images"))
    data = DataSettings(data_dir=str(images), mean=(0.5,), std=(0.5,), crop_pct=1.0)
    return sensitivity(run, RECIPES, data=data, workers=0, device="cpu", prefix_memory_gb=1)


@pytest.mark.parametrize("budget", ["energy=0.6x", "multiplications=0.3x", "size=0.5x"])
def test_the_recipe_converts_exactly_the_mix_and_the_model_costs_what_was_predicted(
    run: Path, found: Sensitivity, tmp_path: Path, budget: str
) -> None:
    result = search(run, budget=budget, out=tmp_path / "mix.toml")
    conversion = convert(load(run / "dense"), tmp_path / "mix.toml", example_input=EXAMPLE)
    steps = {(step.site.path, step.operator, json.dumps(step.options)) for step in conversion.plan.steps}
    assert steps == {(choice.path, choice.operator, json.dumps(choice.options)) for choice in result.taken}
    measured = profile(conversion.model, example_input=EXAMPLE, measure=False, tables=["horowitz-45nm"])
    assert result.predicted.costs["energy"] == pytest.approx(measured.energies[0].picojoules, rel=0.02)
    multiplications = sum(n for key, n in measured.operations.items() if key.startswith("mul."))
    assert result.predicted.costs["multiplications"] == pytest.approx(multiplications, rel=0.02)
    quantity, _, share = budget.partition("=")
    assert result.predicted.shares[quantity] <= float(share.removesuffix("x"))


def test_the_files_hold_the_result(run: Path, found: Sensitivity) -> None:
    result = search(run, budget="energy=0.7x", max_drop=50)
    assert Path(result.recipe) == run / "searched.toml"
    assert SearchResult.model_validate_json((run / "searched.json").read_text()) == result
    assert result.commands == (*found.commands, f"reparam search {run} --budget energy=0.7x --max-drop 50")
    text = (run / "searched.toml").read_text()
    assert text.startswith("# Made by reparam search")
    assert "\n#   reparam search" in text
    again = search(run / "sensitivity.json", budget="energy=0.7x", max_drop=50)
    assert again.predicted == result.predicted


def test_a_drop_alone_takes_the_cheapest_mix_under_it(run: Path, found: Sensitivity, tmp_path: Path) -> None:
    small = search(run, max_drop=0, out=tmp_path / "a.toml")
    large = search(run, max_drop=100, out=tmp_path / "b.toml")
    assert small.predicted.top1_drop == 0
    assert large.predicted.shares["energy"] == min(point.shares["energy"] for point in large.front)
    assert large.predicted.shares["energy"] <= small.predicted.shares["energy"]
    fewest = search(run, max_drop=100, minimise="multiplications", out=tmp_path / "c.toml")
    assert fewest.predicted.costs["multiplications"] <= large.predicted.costs["multiplications"]


def test_a_loose_budget_converts_nothing(run: Path, found: Sensitivity, tmp_path: Path) -> None:
    result = search(run, budget="energy=1x", out=tmp_path / "none.toml")
    assert result.predicted.sites == 0
    conversion = convert(load(run / "dense"), tmp_path / "none.toml", example_input=EXAMPLE)
    assert conversion.plan.steps == ()


def test_another_table_prices_otherwise_and_says_what_it_has_no_price_for(
    run: Path, found: Sensitivity, tmp_path: Path
) -> None:
    result = search(run, budget="energy=0.9x", table="ecoformer", out=tmp_path / "a.toml")
    assert result.table == "ecoformer"
    assert result.unpriced
    with pytest.raises(CostError, match='Did you mean "ecoformer"'):
        search(run, budget="energy=0.9x", table="ecoformr", out=tmp_path / "b.toml")


def test_a_chart_is_drawn_beside_the_recipe(run: Path, found: Sensitivity, tmp_path: Path) -> None:
    search(run, budget="energy=0.6x", out=tmp_path / "mix.toml")
    assert {path.name for path in tmp_path.iterdir()} == {"mix.toml", "mix.json", "mix.png", "mix.svg"}
    assert "share of the dense model" in (tmp_path / "mix.svg").read_text()


def test_a_budget_that_cannot_be_met_says_what_can_and_leaves_nothing(
    run: Path, found: Sensitivity, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match=r"keeps to energy=0\.001x.*\n.*energy=0\.\d+x"):
        search(run, budget="energy=0.001x", out=tmp_path / "mix.toml")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused(run: Path, found: Sensitivity, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"make it with: reparam sensitivity"):
        search(tmp_path, budget="energy=0.5x")
    with pytest.raises(BudgetError, match="nothing bounds the search"):
        search(run)
    with pytest.raises(BudgetError, match="from 0 up"):
        search(run, max_drop=-1)
    with pytest.raises(CheckpointError, match=r"ends in \.toml"):
        search(run, max_drop=1, out=tmp_path / "mix.yaml")
    with pytest.raises(CheckpointError, match="is the analysis"):
        search(run, max_drop=1, out=run / "sensitivity.toml")
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "mine"\n')
    with pytest.raises(CheckpointError, match="did not write this file"):
        search(run, max_drop=1, out=mine)
    assert mine.read_text() == 'name = "mine"\n'


def test_the_verb_and_its_room_do_not_hide_each_other() -> None:
    assert callable(reparam.search)
    assert callable(reparam.sensitivity)


@pytest.mark.parametrize("name", ["config.json", "evaluate.json", "curves.png", "curves.svg"])
def test_files_of_a_run_beside_the_recipe_are_never_replaced(found: Sensitivity, tmp_path: Path, name: str) -> None:
    analysis = tmp_path / "sensitivity.json"
    analysis.write_text(found.model_dump_json())
    other = tmp_path / name
    other.write_text("of the run")
    with pytest.raises(CheckpointError, match=f"{re.escape(name)}: `reparam search` did not write this file"):
        search(analysis, budget="energy=0.9x", out=other.with_suffix(".toml"))
    assert other.read_text() == "of the run"
    assert not other.with_suffix(".toml").exists()


def test_a_search_may_replace_what_a_search_wrote(found: Sensitivity, tmp_path: Path) -> None:
    analysis = tmp_path / "sensitivity.json"
    analysis.write_text(found.model_dump_json())
    for budget in ("energy=0.9x", "energy=0.8x"):
        search(analysis, budget=budget)
    assert "energy=0.8x" in (tmp_path / "searched.toml").read_text()


@pytest.mark.parametrize("broken", [{"sites": []}, {"dense_top1": 90.0, "images": "many"}])
def test_an_analysis_without_sites_or_sense_is_refused(
    found: Sensitivity, tmp_path: Path, broken: dict[str, Any]
) -> None:
    analysis = tmp_path / "sensitivity.json"
    analysis.write_text(json.dumps(json.loads(found.model_dump_json()) | broken))
    with pytest.raises(CheckpointError, match="this is no result of `reparam sensitivity`"):
        search(analysis, budget="energy=0.9x")


def test_a_table_that_prices_nothing_is_no_bound(found: Sensitivity, tmp_path: Path) -> None:
    analysis, table = tmp_path / "sensitivity.json", tmp_path / "free.toml"
    analysis.write_text(found.model_dump_json())
    table.write_text('name = "free"\ntitle = "Free"\nsource = "nobody"\n[operations]\nmul = { f32 = 0.0 }\n')
    with pytest.raises(BudgetError, match="no energy to save: the table free prices nothing in it"):
        search(analysis, budget="energy=0.9x", table=table)
    with pytest.raises(CostError, match="an accounting of whole layers, which only profile has"):
        search(analysis, budget="energy=0.9x", table="shiftaddvit-eyeriss")
