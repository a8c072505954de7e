import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from reparam.api.convert import convert
from reparam.api.evaluate import evaluate
from reparam.api.sensitivity import sensitivity
from reparam.checkpoint.load import load
from reparam.errors import CheckpointError, DataError, ModelError, PlanError, RecipeError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.load import load_recipe
from reparam.tradeoff.records import Sensitivity, SensitivityStep, SiteSensitivity, read_sensitivity

MODEL = "vit_tiny_patch16_224"
SHAPE: dict[str, Any] = {
    "num_classes": 3,
    "img_size": 8,
    "in_chans": 1,
    "model_kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
HERE: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 7}


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.api.sensitivity.can_draw", lambda: "picture" in request.node.name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("runs") / "shiftaddvit"
    convert(MODEL, "shiftaddvit", weights="none", out=out, **SHAPE)
    return out


@pytest.fixture(scope="module")
def found(run: Path, data: DataSettings) -> Sensitivity:
    return sensitivity(run, data=data, **HERE)


def test_the_original_of_a_run_is_measured_by_the_runs_recipe(
    run: Path, data: DataSettings, found: Sensitivity
) -> None:
    assert found.dense_top1 == evaluate(run / "dense", data=data, workers=0, device="cpu").top1
    assert found.images == 18
    assert [recipe.name for recipe in found.subject.recipes] == ["shiftaddvit"]
    assert {(site.operator, site.path) for site in found.sites} >= {
        ("binary_linear_attention", "blocks.0.attn"),
        ("shift_linear", "blocks.1.attn.qkv"),
        ("moe_mlp", "blocks.1.mlp"),
    }
    assert "head" in {site.path for site in found.other_sites}


def test_the_file_holds_the_result_the_most_harmful_first(run: Path, found: Sensitivity) -> None:
    assert read_sensitivity(run / "sensitivity.json") == found
    divergences = [site.kl for site in found.sites]
    assert divergences == sorted(divergences, reverse=True)
    written = json.loads((run / "sensitivity.json").read_text())
    assert {"path", "kind", "operator", "options", "top1", "top1_drop", "kl"} <= written["sites"][0].keys()
    assert {"dense_top1", "images", "commands"} <= written.keys()


def test_the_command_makes_it_again(run: Path, images: Path, found: Sensitivity) -> None:
    how = "--mean 0.5 --std 0.5"
    assert found.commands == (f"reparam sensitivity {run} --data-dir {images} --crop-pct 1.0 {how}",)


def test_a_site_is_measured_as_a_recipe_for_it_alone_is_evaluated(
    run: Path, tmp_path: Path, data: DataSettings, found: Sensitivity
) -> None:
    site = next(site for site in found.sites if site.path == "blocks.1.attn.qkv")
    rule = f'match = {{ kind = "linear", path = "{site.path}" }}\noperator = "{site.operator}"\n'
    (tmp_path / "one.toml").write_text(f'name = "one"\nsummary = "One."\n[[stage]]\nname = "a"\n[[stage.rule]]\n{rule}')
    model = load(run / "dense")
    converted = convert(model, tmp_path / "one.toml", example_input=torch.zeros(2, 1, 8, 8), out=tmp_path / "one")
    assert [step.site.path for step in converted.plan.steps] == [site.path]
    assert evaluate(tmp_path / "one", data=data, workers=0, device="cpu").top1 == site.top1


def test_a_dense_checkpoint_and_a_name_want_a_recipe(
    run: Path, data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Sensitivity
) -> None:
    monkeypatch.chdir(tmp_path)
    for source, options in ((run / "dense", {}), (MODEL, {"weights": "none", **SHAPE})):
        with pytest.raises(RecipeError, match="--recipe"):
            sensitivity(source, data=data, **options, **HERE)
    again = sensitivity(run / "dense", "shiftaddvit", data=data, **HERE)
    assert figures(again) == figures(found)
    assert (run / "dense" / "sensitivity.json").exists()
    sensitivity(MODEL, "ladder-shift-mlp", data=data, weights="none", **SHAPE, **HERE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sensitivity.json", "sensitivity.jsonl"]


def test_a_model_that_a_recipe_only_trained_is_dense_itself(
    run: Path, data: DataSettings, tmp_path: Path, found: Sensitivity
) -> None:
    convert(load(run / "dense"), "none", example_input=torch.zeros(2, 1, 8, 8), out=tmp_path / "trained")
    shutil.rmtree(tmp_path / "trained" / "dense")
    assert figures(sensitivity(tmp_path / "trained", "shiftaddvit", data=data, **HERE)) == figures(found)


def test_prefixes_change_no_figure(run: Path, data: DataSettings, tmp_path: Path, found: Sensitivity) -> None:
    without = sensitivity(run, data=data, prefix_memory_gb=0, out=tmp_path / "s.json", **HERE)
    assert {site.began_at for site in without.sites} == {None}
    assert {site.began_at for site in found.sites} != {None}
    assert figures(without) == figures(found)


def test_several_recipes_measure_several_operators_for_a_site(run: Path, data: DataSettings, tmp_path: Path) -> None:
    four = tmp_path / "four.toml"
    four.write_text(
        'name = "four"\nsummary = "Four bits."\n[[stage]]\nname = "shift"\n[[stage.rule]]\n'
        'match = { path = "blocks.*.attn.qkv" }\noperator = "shift_linear"\noptions = { bits = 3 }\n'
    )
    both = sensitivity(run, ["shiftaddvit", four], data=data, out=tmp_path / "s.json", **HERE)
    qkv = {site.options["bits"]: site for site in both.sites if site.path == "blocks.0.attn.qkv"}
    assert qkv.keys() == {3, 5}
    assert qkv[3].kl > qkv[5].kl
    assert both.told_apart_by(qkv[3]) == {"bits": 3}
    assert qkv[3].weight_bytes_change < qkv[5].weight_bytes_change < 0


def test_images_are_spread_over_the_split(run: Path, data: DataSettings, tmp_path: Path) -> None:
    few = sensitivity(run, data=data, images=3, out=tmp_path / "s.json", **HERE)
    assert few.images == 3  # one of each class, for 18 images are sorted by class
    assert few.dense.top1_interval[0] < few.dense_top1 or few.dense_top1 == 0


class _StoppedError(Exception):
    pass


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(
    run: Path, data: DataSettings, tmp_path: Path, found: Sensitivity, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.json"

    def stop(step: SensitivityStep) -> None:
        if step.done == 3:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        sensitivity(run, data=data, out=out, progress=stop, **HERE)
    assert not out.exists()
    with out.with_suffix(".jsonl").open("ab") as journal:
        journal.write(b'{"name": "torn')
    steps: list[SensitivityStep] = []
    whole = sensitivity(run, data=data, out=out, progress=steps.append, **HERE)
    assert figures(whole) == figures(found)
    assert [step.done for step in steps if step.site] == list(range(4, len(found.sites) + 1))
    monkeypatch.setattr("reparam.api.sensitivity.make_eval_loader", None)  # nothing is left to evaluate
    assert sensitivity(run, data=data, out=out, **HERE) == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"recipe": "ladder-add"}, r'recipes "shiftaddvit", now "ladder-add"', id="recipe"),
        pytest.param({"overrides": ["stage.1.rule.2.bits=4"]}, "with other rules", id="options"),
        pytest.param({"images": 5}, "1000 images, now 5", id="images"),
        pytest.param({"data": DataSettings(data_dir="elsewhere")}, "now --data-dir elsewhere", id="data"),
    ],
)
def test_a_journal_of_something_else_is_refused_and_says_what_differs(
    run: Path, data: DataSettings, found: Sensitivity, change: dict[str, Any], words: str
) -> None:
    before = (run / "sensitivity.jsonl").read_bytes(), (run / "sensitivity.json").read_bytes()
    options = {"recipe": "shiftaddvit", "data": data, **change}
    with pytest.raises(CheckpointError, match=rf"of another analysis: .*{words}.*--fresh"):
        sensitivity(run, **options, **HERE)
    assert ((run / "sensitivity.jsonl").read_bytes(), (run / "sensitivity.json").read_bytes()) == before


def test_other_weights_and_other_images_are_noticed(
    run: Path, data: DataSettings, tmp_path: Path, found: Sensitivity, images: Path
) -> None:
    torch.manual_seed(1)
    convert(MODEL, "shiftaddvit", weights="none", out=tmp_path / "other", **SHAPE)
    with pytest.raises(CheckpointError, match="with other weights"):
        sensitivity(tmp_path / "other", data=data, out=run / "sensitivity.json", **HERE)
    lines = (run / "sensitivity.jsonl").read_text().splitlines(keepends=True)
    shortened = [line.replace('"images":18', '"images":17') for line in lines[:-1]]
    (tmp_path / "s.jsonl").write_text("".join(shortened))
    with pytest.raises(CheckpointError, match="the images have changed"):
        sensitivity(run, data=data, out=tmp_path / "s.json", **HERE)


def test_fresh_starts_over(run: Path, data: DataSettings, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    sensitivity(run, "ladder-shift-attention", data=data, out=out, **HERE)
    fresh = sensitivity(run, "ladder-shift-mlp", data=data, out=out, fresh=True, **HERE)
    assert [recipe.name for recipe in read_sensitivity(out).subject.recipes] == ["ladder-shift-mlp"]
    assert read_sensitivity(out) == fresh


def test_a_picture_is_drawn_beside_the_file(run: Path, data: DataSettings, found: Sensitivity, tmp_path: Path) -> None:
    sensitivity(run, "ladder-shift-mlp", data=data, out=tmp_path / "s.json", **HERE)
    assert {path.name for path in tmp_path.iterdir()} == {"s.json", "s.jsonl", "s.png", "s.svg"}
    text = (tmp_path / "s.svg").read_text()
    assert "blocks.1.mlp.fc2" in text
    assert "shift_linear" in text


def test_bad_input_is_refused_before_the_work(run: Path, data: DataSettings, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"dear": "diary"}')
    with pytest.raises(CheckpointError, match="no result of `reparam sensitivity`"):
        sensitivity(run, data=data, out=tmp_path / "mine.json", **HERE)
    assert (tmp_path / "mine.json").read_text() == '{"dear": "diary"}'
    with pytest.raises(CheckpointError, match=r"ends in \.json"):
        sensitivity(run, data=data, out=tmp_path / "s.txt", **HERE)
    part = tmp_path / "part"
    part.mkdir()
    for name in ("config.json", "model.safetensors"):
        (part / name).write_bytes((run / name).read_bytes())
    with pytest.raises(CheckpointError, match="without its dense original"):
        sensitivity(part, data=data, **HERE)
    with pytest.raises(ModelError, match="an exported file cannot be converted"):
        sensitivity("model.onnx", "shiftaddvit", data=data, **HERE)
    with pytest.raises(ModelError, match="img_size shape"):
        sensitivity(run, data=data, img_size=8, **HERE)
    with pytest.raises(ModelError, match="weights shapes"):
        sensitivity(run, data=data, weights="none", **HERE)
    with pytest.raises(RecipeError, match="overrides change one recipe"):
        sensitivity(run, ["addernet", "shiftaddvit"], data=data, overrides=["stage.0.name=a"], **HERE)
    with pytest.raises(PlanError, match="nothing to measure"):
        sensitivity(run, load_recipe("none"), data=data, out=tmp_path / "s.json", **HERE)
    with pytest.raises(DataError):
        sensitivity(run, data=DataSettings(data_dir=str(tmp_path / "gone")), out=tmp_path / "t.json", **HERE)


def test_without_its_data_an_analysis_leaves_nothing_and_loses_nothing(
    run: Path, data: DataSettings, tmp_path: Path, found: Sensitivity
) -> None:
    out = tmp_path / "s.json"
    nowhere = DataSettings(data_dir=str(tmp_path / "nodta"))
    for fresh in (False, True):
        with pytest.raises(DataError, match="no such folder"):
            sensitivity(run, data=nowhere, out=out, fresh=fresh, **HERE)
    assert not list(tmp_path.iterdir())
    journal = out.with_suffix(".jsonl")
    journal.write_bytes((run / "sensitivity.jsonl").read_bytes())
    with pytest.raises(DataError, match="no such folder"):
        sensitivity(run, data=nowhere, out=out, fresh=True, **HERE)
    assert journal.read_bytes() == (run / "sensitivity.jsonl").read_bytes()


@pytest.mark.parametrize("fresh", [False, True])
def test_another_file_in_the_journal_s_place_is_never_replaced(
    run: Path, data: DataSettings, tmp_path: Path, fresh: bool
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"kind": "epoch", "loss": 1.0}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: .* this file is another one; name another result"):
        sensitivity(run, data=data, out=tmp_path / "metrics.json", fresh=fresh, **HERE)
    assert metrics.read_text() == '{"kind": "epoch", "loss": 1.0}\n'


def figures(found: Sensitivity) -> list[dict[str, Any]]:
    """All that is measured, without when and from where on."""
    kept = set(SiteSensitivity.model_fields) - {"seconds", "began_at"}
    return [site.model_dump(include=kept) for site in found.sites]
