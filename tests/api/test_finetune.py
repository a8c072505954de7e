import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from reparam.api.evaluate import evaluate
from reparam.api.find_lr import find_lr
from reparam.api.finetune import FinetuneResult, finetune
from reparam.checkpoint.load import load
from reparam.checkpoint.record import read_record
from reparam.errors import CheckpointError, DataError, ModelError, OptionError, RecipeError
from reparam.models.build import build_spec
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.moe import MoeMlp
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.load import load_recipe
from reparam.recipe.settings import TrainSettings
from reparam.train.data import image_format
from reparam.train.evaluate import Evaluation
from reparam.train.metrics import read_history
from reparam.train.progress import EpochReport, Silent, StageReport
from reparam.train.rate_test import RateTest
from tests.api.staged import MODEL, SHAPE
from tests.train.pico import draw_folder

QUICK = {"epochs": 1, "batch_size": 12, "workers": 0, "no_aug": True, "lr": 3e-3}
DEVICE = "cpu"
PICTURES = True


class Notes(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.stages: list[StageReport] = []
        self.epochs: list[EpochReport] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stage_started(self, stage: StageReport) -> None:
        self.stages.append(stage)

    def epoch_finished(self, epoch: EpochReport) -> None:
        self.epochs.append(epoch)


def without_speed(evaluation: Evaluation) -> Evaluation:
    return evaluation.model_copy(update={"images_per_second": 0.0, "model_images_per_second": None})


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    root = draw_folder(tmp_path_factory.mktemp("images"))
    return DataSettings(data_dir=str(root), mean=(0.5,), std=(0.5,), train_interpolation="bilinear", crop_pct=1.0)


@pytest.fixture(scope="module")
def trained(data: DataSettings, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """A dense model trained from random weights by the recipe without rules."""
    out = tmp_path_factory.mktemp("runs") / "dense"
    settings = {**QUICK, "epochs": 3}
    return finetune(MODEL, recipe="none", data=data, settings=settings, weights="none", out=out, device=DEVICE, **SHAPE)


@pytest.fixture(scope="module")
def weights(trained: FinetuneResult) -> str:
    return str(trained.out / "model.safetensors")


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def converted(
    data: DataSettings, weights: str, notes: Notes, tmp_path_factory: pytest.TempPathFactory
) -> FinetuneResult:
    """Both stages of `shiftaddvit`, one epoch each."""
    out = tmp_path_factory.mktemp("runs") / "shiftaddvit"
    return finetune(
        MODEL,
        recipe="shiftaddvit",
        data=data,
        settings=QUICK,
        weights=weights,
        out=out,
        progress=notes,
        device=DEVICE,
        **SHAPE,
    )


def test_a_trained_model_prepares_images_as_it_was_trained(data: DataSettings, tmp_path: Path) -> None:
    own = replace(data, mean=(0.2,), std=(0.3,), interpolation="nearest", crop_pct=0.75)
    made = finetune(
        MODEL, recipe="none", data=own, settings=QUICK, weights="none", out=tmp_path, device=DEVICE, **SHAPE
    )
    plain = DataSettings(data_dir=data.data_dir)
    for folder in (made.out, made.stages[0].checkpoint):
        found = evaluate(folder, data=plain, device=DEVICE, workers=0)
        assert found.loss == pytest.approx(made.stages[0].best.loss, rel=1e-6)
    other = evaluate(made.out, data=replace(plain, mean=(0.5,)), device=DEVICE, workers=0)
    assert other.loss != pytest.approx(found.loss, rel=1e-3)
    by_timm = timm.create_model(f"local-dir:{made.out}")
    assert {key: by_timm.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct")} == {
        "mean": [0.2],
        "std": [0.3],
        "interpolation": "nearest",
        "crop_pct": 0.75,
    }
    spec = build_spec(f"local-dir:{made.out}")
    assert image_format(plain, input_size=(1, 8, 8), model=spec.data).std == (0.3,)


def test_the_recipe_without_rules_trains_the_dense_model(trained: FinetuneResult) -> None:
    (stage,) = trained.stages
    assert without_speed(stage.before) == without_speed(trained.dense)
    assert stage.best.loss < trained.dense.loss
    assert [row["distill_loss"] for row in rows(trained.out)] == ["", "", ""]


def test_a_run_holds_what_the_house_promises(converted: FinetuneResult) -> None:
    names = {entry.name for entry in converted.out.iterdir()}
    files = {"config.json", "model.safetensors", "summary.csv", "metrics.jsonl", "args.yaml", "evaluate.json"}
    pictures = {"curves.png", "curves.svg", "routing.png", "routing.svg"}
    assert names == files | pictures | {"finetune.json", "dense", "last", "stage-0-attention", "stage-1-experts"}


def test_each_stage_folder_is_a_model_of_the_stages_so_far(converted: FinetuneResult) -> None:
    operators = [
        {type(module) for module in load(stage.checkpoint).modules()} & {BinaryLinearAttention, MoeMlp}
        for stage in converted.stages
    ]
    assert operators == [{BinaryLinearAttention}, {BinaryLinearAttention, MoeMlp}]


def test_the_run_ends_as_the_best_of_the_last_stage(converted: FinetuneResult) -> None:
    run, last = (load_file(f / "model.safetensors") for f in (converted.out, converted.stages[-1].checkpoint))
    assert run.keys() == last.keys()
    assert all(torch.equal(run[name], last[name]) for name in run)
    assert (converted.out / "evaluate.json").read_text() == converted.stages[-1].best.model_dump_json(indent=2) + "\n"
    load(converted.out)


def test_training_that_only_harms_leaves_the_model_it_began_with(
    data: DataSettings, weights: str, tmp_path: Path
) -> None:
    settings = {**QUICK, "opt": "momentum", "lr": 50.0}
    out = tmp_path / "run"
    result = finetune(
        MODEL, recipe="none", data=data, settings=settings, weights=weights, out=out, device=DEVICE, **SHAPE
    )
    start, kept, last = (load_file(out / f / "model.safetensors") for f in ("dense", "stage-0-dense", "last"))
    assert result.stages[0].best_epoch == 0
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert not torch.equal(start["head.weight"], last["head.weight"])


def test_the_original_is_untouched_and_teaches_every_stage(converted: FinetuneResult, weights: str) -> None:
    dense, source = load_file(converted.out / "dense" / "model.safetensors"), load_file(weights)
    assert all(torch.equal(dense[name], source[name]) for name in source)
    assert all(float(row["distill_loss"]) > 0 for row in rows(converted.out))


def test_the_summary_has_timms_columns_first_and_one_row_per_epoch(converted: FinetuneResult) -> None:
    header = (converted.out / "summary.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr,stage,")
    table = rows(converted.out)
    assert [(row["stage"], row["epoch"]) for row in table] == [("attention", "0"), ("experts", "0")]
    assert table[0]["mult_share"] == table[0]["balance_loss"] == ""
    assert 0 < float(table[1]["mult_share"]) < 1
    assert float(table[1]["balance_loss"]) >= 0


def test_the_listener_hears_stages_epochs_and_messages(converted: FinetuneResult, notes: Notes) -> None:
    assert [(stage.name, stage.index, stage.stages) for stage in notes.stages] == [
        ("attention", 0, 2),
        ("experts", 1, 2),
    ]
    assert [stage.before for stage in notes.stages] == [stage.before for stage in converted.stages]
    assert [(epoch.stage, epoch.epoch) for epoch in notes.epochs] == [("attention", 1), ("experts", 1)]
    assert notes.messages == ["evaluating the dense original"]


def test_settings_win_over_the_recipe_which_wins_over_the_defaults(converted: FinetuneResult) -> None:
    args = yaml.safe_load((converted.out / "args.yaml").read_text())
    first = args["stages"][0]
    assert first["stage"] == "attention"
    assert (first["epochs"], first["lr"]) == (1, 3e-3)  # given; the recipe says 10 and 1e-4
    assert first["warmup_epochs"] == 1  # the recipe's; the default is 0
    assert first["smoothing"] == TrainSettings().smoothing
    assert set(first) == {"stage", *asdict(TrainSettings())}
    assert args["recipe"] == "shiftaddvit"


def test_a_later_stage_begins_with_the_best_weights_of_the_stage_before(
    data: DataSettings, converted: FinetuneResult, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    finetune(converted.out, data=data, settings=QUICK, stage=0, out=out, device=DEVICE)
    result = finetune(out, data=data, settings={**QUICK, "epochs": 0}, stage=1, device=DEVICE)
    before, after = (load(out / name).state_dict() for name in ("stage-0-attention", "stage-1-experts"))
    kept = [name for name in before if name in after and "qkv" not in name and "proj" not in name]
    assert {"cls_token", "blocks.0.norm1.weight", "head.weight"} <= set(kept)
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert result.stages[0].best == result.stages[0].before
    assert result.stages[0].best_epoch == 0
    assert torch.equal(before["blocks.0.mlp.fc1.weight"], after["blocks.0.mlp.multiply.fc1.weight"])


def test_a_copy_leaves_the_source_as_it_was_and_takes_no_stages_along(
    data: DataSettings, converted: FinetuneResult, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in converted.out.rglob("*") if path.is_file()}
    finetune(converted.out, data=data, settings={**QUICK, "epochs": 0}, stage=0, out=tmp_path / "b", device=DEVICE)
    assert {path: path.stat().st_mtime_ns for path in converted.out.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "b" / "stage-1-experts").exists()


def test_training_one_stage_again_keeps_the_rows_of_the_others_and_the_run_as_it_was(
    data: DataSettings, converted: FinetuneResult, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    finetune(converted.out, data=data, settings=QUICK, out=out, device=DEVICE)
    digest = read_record(out).digest
    finetune(out, data=data, settings={**QUICK, "epochs": 2}, stage=0, device=DEVICE)
    assert [row["stage"] for row in rows(out)] == ["experts", "attention", "attention"]
    assert read_record(out).digest == digest


def test_the_same_seed_gives_the_same_run(data: DataSettings, converted: FinetuneResult, tmp_path: Path) -> None:
    again = finetune(converted.out, data=data, settings=QUICK, out=tmp_path / "again", device=DEVICE)
    assert read_record(again.out).digest == read_record(converted.out).digest


def test_a_stage_whose_predecessor_was_not_trained_says_which(
    data: DataSettings, converted: FinetuneResult, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="stage 1 begins where stage 0 ended"):
        finetune(converted.out, data=data, settings=QUICK, stage=1, out=tmp_path / "b", device=DEVICE)


def test_a_stage_that_is_not_there_is_refused(data: DataSettings, converted: FinetuneResult) -> None:
    with pytest.raises(OptionError, match="stage 2: the run has 2 stages, 0 to 1"):
        finetune(converted.out, data=data, stage=2, device=DEVICE)


def test_a_run_takes_other_fine_tuning_but_no_other_rules(
    data: DataSettings, converted: FinetuneResult, tmp_path: Path
) -> None:
    result = finetune(
        converted.out,
        data=data,
        settings={key: value for key, value in QUICK.items() if key != "epochs"},
        overrides=["stage.0.finetune.epochs=0"],
        stage=0,
        out=tmp_path / "b",
        device=DEVICE,
    )
    assert result.stages[0].epochs == 0
    with pytest.raises(RecipeError, match='converted by recipe "shiftaddvit", and "deepshift-q"'):
        finetune(converted.out, recipe="deepshift-q", data=data, device=DEVICE)
    with pytest.raises(RecipeError, match="has other rules") as caught:
        finetune(converted.out, overrides=["stage.0.rule.0.conv_kernel=5"], data=data, device=DEVICE)
    assert 'stage 0 "attention", rule 0, options.conv_kernel: was not given, is 5\n' in str(caught.value)


def test_arguments_that_shape_a_model_are_refused_for_a_run(data: DataSettings, converted: FinetuneResult) -> None:
    with pytest.raises(ModelError, match="num_classes shapes a model when it is made"):
        finetune(converted.out, data=data, num_classes=5, device=DEVICE)


def test_weights_are_refused_for_a_run_which_has_its_own(data: DataSettings, converted: FinetuneResult) -> None:
    with pytest.raises(ModelError, match=r"weights shapes a model .* Leave it out, or name the model"):
        finetune(converted.out, data=data, weights="none", device=DEVICE)


def test_a_dense_checkpoint_is_not_a_run(data: DataSettings, converted: FinetuneResult) -> None:
    with pytest.raises(CheckpointError, match="holds a dense model and not a run"):
        finetune(converted.out / "dense", data=data, device=DEVICE)


def test_a_model_without_a_recipe_is_told_so(data: DataSettings) -> None:
    with pytest.raises(RecipeError, match="runs/nowhere: no run is there"):
        finetune("runs/nowhere", data=data)


def test_missing_data_stops_before_anything_is_converted(tmp_path: Path) -> None:
    data = DataSettings(data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no such folder"):
        finetune(MODEL, recipe="none", data=data, weights="none", out=tmp_path / "run", **SHAPE)
    assert not (tmp_path / "run").exists()


def test_a_class_mismatch_names_both_counts(data: DataSettings, tmp_path: Path) -> None:
    shape = {**SHAPE, "num_classes": 10}
    with pytest.raises(DataError, match=r"3 classes \(dark, grey, light\), but the model has 10 outputs"):
        finetune(MODEL, recipe="none", data=data, weights="none", out=tmp_path / "run", device=DEVICE, **shape)


def test_wrong_settings_stop_before_anything_is_converted(data: DataSettings, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match='"epoch"'):
        finetune(MODEL, recipe="none", data=data, settings={"epoch": 1}, out=tmp_path / "run", **SHAPE)
    assert not (tmp_path / "run").exists()


def test_a_random_original_does_not_teach(data: DataSettings, tmp_path: Path) -> None:
    notes = Notes()
    finetune(
        MODEL,
        recipe=load_recipe("deepshift-q"),
        data=data,
        settings={**QUICK, "distill_loss_weight": 1.0},
        weights="none",
        out=tmp_path / "run",
        progress=notes,
        device=DEVICE,
        **SHAPE,
    )
    assert "no distillation: the dense original has random weights" in notes.messages
    assert rows(tmp_path / "run")[0]["distill_loss"] == ""


def test_the_result_reads_back_from_its_json(converted: FinetuneResult) -> None:
    assert FinetuneResult.model_validate_json(converted.model_dump_json()) == converted


def test_the_metrics_tell_every_step_epoch_and_target(converted: FinetuneResult, notes: Notes) -> None:
    history = read_history(converted.out / "metrics.jsonl")
    assert [stage.report for stage in history] == notes.stages
    assert [stage.epochs for stage in history] == [(epoch,) for epoch in notes.epochs]
    assert [stage.report.dense for stage in history] == [converted.dense] * 2
    assert [stage.updates for stage in history] == [3, 3]
    targets, shares = history[1].report.target_share, history[1].epochs[0].mult_share
    assert targets.keys() == shares.keys() != set()
    assert set(targets.values()) == {0.4}  # the recipe's latencies are 0.6 and 0.4


def test_a_second_training_replaces_what_is_on_record(data: DataSettings, converted: FinetuneResult) -> None:
    before = (converted.out / "metrics.jsonl").read_text().splitlines()
    (converted.out / "profile.json").write_text("of the weights before")
    finetune(converted.out, data=data, settings=QUICK, stage=1, device=DEVICE)
    assert not (converted.out / "profile.json").exists()
    after = (converted.out / "metrics.jsonl").read_text().splitlines()
    assert len(after) == len(before)
    first = [line for line in before if json.loads(line)["stage"] == "attention"]
    assert after[: len(first)] == first


def test_trackers_are_given_the_figures(data: DataSettings, weights: str, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = {**QUICK, "log_with": "tensorboard"}
    run = tmp_path / "run"
    result = finetune(
        MODEL, recipe="none", data=data, settings=settings, weights=weights, out=run, device=DEVICE, **SHAPE
    )
    events = reader.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (point,) = events.Scalars("eval/top1")
    assert point.step == 3
    (epoch,) = read_history(result.out / "metrics.jsonl")[0].epochs
    assert point.value == pytest.approx(epoch.evaluation.top1)


def test_finding_a_rate_trains_nothing(data: DataSettings, weights: str, tmp_path: Path) -> None:
    run, notes = tmp_path / "run", Notes()
    test = find_lr(
        MODEL,
        recipe="shiftaddvit",
        data=data,
        settings={**QUICK, "batch_size": 4},
        weights=weights,
        out=run,
        device=DEVICE,
        progress=notes,
        **SHAPE,
    )
    assert len(test.rates) == len(test.losses) <= 9
    assert test.rates[0] == pytest.approx(1e-7)
    assert RateTest.model_validate_json((run / "find-lr.json").read_text()) == test
    names = {entry.name for entry in run.iterdir()}
    assert names == {"config.json", "model.safetensors", "dense", "find-lr.json", "find-lr.png", "find-lr.svg"}
    assert notes.messages == [
        "testing learning rates; nothing is trained",
        f"wrote find-lr.json, find-lr.png, find-lr.svg to {run}",
    ]
    assert notes.stages == []
