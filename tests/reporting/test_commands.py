"""The commands of a run, checked by what the command line makes of them."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import reparam
from reparam.api.recipes import check_recipe
from reparam.checkpoint.record import Record, read_record
from reparam.errors import CheckpointError
from reparam.models.spec import ModelSpec
from reparam.recipe.resolve import resolve_settings
from reparam.recipe.settings import TrainSettings
from reparam.reporting.commands import Commands, data_of, model_name, read_args, reproduce
from reparam_cli.main import run as run_command

SHAPE: dict[str, Any] = {
    "num_classes": 3,
    "img_size": 8,
    "in_chans": 1,
    "model_kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
OVERRIDES = ("stage.1.rule.2.bits=4", "stage.0.finetune.epochs=3", "stage.1.rule.3.shift.bits=6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a run"
    reparam.convert("vit_tiny_patch16_224", "shiftaddvit", weights="none", overrides=OVERRIDES, out=out, **SHAPE)
    return out


@pytest.fixture(scope="module")
def record(folder: Path) -> Record:
    return read_record(folder)


def args_of(record: Record, data: reparam.DataSettings, given: dict[str, object], stages: Sequence[int]) -> Any:
    """What `finetune` writes to args.yaml, as it is read back."""
    assert record.plan is not None
    recipe = record.plan.recipe
    resolved = {recipe.stages[i].name: resolve_settings(recipe.stages[i].finetune, given) for i in stages}
    listed = [{"stage": name, **asdict(settings)} for name, settings in resolved.items()]
    return yaml.safe_load(yaml.safe_dump(_plain({"device": "cpu", **asdict(data), "stages": listed})))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def asked(monkeypatch: pytest.MonkeyPatch, verb: str, commands: Commands) -> tuple[str, dict[str, Any]]:
    """What the line of that verb hands to the function of that name."""
    (line,) = [line for line in commands.lines if shlex.split(line)[1] == verb]
    seen: list[tuple[str, dict[str, Any]]] = []

    def take(source: str, *arguments: Any, **options: Any) -> None:
        seen.append((source, {**options, **({"recipe": arguments[0]} if arguments else {})}))
        raise reparam.errors.TrainError("far enough")

    monkeypatch.setitem(vars(reparam), verb, take)
    assert run_command(shlex.split(line)[1:]) == 2
    return seen[0]


def test_the_conversion_asks_for_the_same_model_and_the_same_recipe(
    monkeypatch: pytest.MonkeyPatch, record: Record, folder: Path
) -> None:
    source, options = asked(monkeypatch, "convert", reproduce(folder, record, None))
    assert source.partition(".")[0] == "vit_tiny_patch16_224"
    assert {key: options[key] for key in SHAPE} == SHAPE
    assert (options["weights"], str(options["out"])) == ("none", str(folder))
    assert record.plan is not None
    assert check_recipe(options["recipe"], overrides=options["overrides"]) == record.plan.recipe


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="the recipe's own"),
        pytest.param({"epochs": 2, "lr": 1e-3, "opt": "sgd", "scale": (0.7, 1.0)}, id="numbers, words and pairs"),
        pytest.param({"clip_grad": None, "no_aug": True, "aa": "rand-m9"}, id="none and flags"),
        pytest.param({"latency": "0.7,0.3", "balance_loss_weight": 0.5}, id="latencies"),
    ],
)
def test_the_training_asks_for_the_same_settings_and_data(
    monkeypatch: pytest.MonkeyPatch, record: Record, folder: Path, given: dict[str, object]
) -> None:
    data = reparam.DataSettings(data_dir="some images", mean=(0.5,), std=(0.25,), val_split="test")
    args = args_of(record, data, given, stages=(0, 1))
    source, options = asked(monkeypatch, "finetune", reproduce(folder, record, args))
    assert (source, options["device"], options["stage"]) == (str(folder), "cpu", None)
    assert options["data"] == data == data_of(args)
    assert record.plan is not None
    for i, stage in enumerate(args["stages"]):
        again = resolve_settings(record.plan.recipe.stages[i].finetune, options["settings"])
        assert _plain(asdict(again)) == {key: value for key, value in stage.items() if key != "stage"}


def test_a_stage_that_was_trained_alone_is_trained_alone(
    monkeypatch: pytest.MonkeyPatch, record: Record, folder: Path
) -> None:
    args = args_of(record, reparam.DataSettings(data_dir="d"), {}, stages=(1,))
    assert asked(monkeypatch, "finetune", reproduce(folder, record, args))[1]["stage"] == 1


def test_settings_of_another_version_do_not_get_in_the_way(record: Record, folder: Path) -> None:
    args = args_of(record, reparam.DataSettings(data_dir="d"), {"epochs": 7}, stages=(0, 1))
    for stage in args["stages"]:
        stage["long_gone"] = 3
        del stage["momentum"]
    (line,) = [line for line in reproduce(folder, record, args).lines if line.startswith("reparam finetune")]
    assert "--epochs 7" in line
    assert "momentum" not in line
    assert "long" not in line


def test_random_weights_are_said_to_begin_otherwise(record: Record, folder: Path) -> None:
    assert reproduce(folder, record, None).notes == ("Its weights began at random, and begin otherwise each time.",)


def test_a_recipe_of_ones_own_is_said_to_be_elsewhere(record: Record, folder: Path) -> None:
    assert record.plan is not None
    own = record.plan.recipe.model_copy(update={"name": "my-own"})
    changed = record.model_copy(update={"plan": record.plan.model_copy(update={"recipe": own})})
    notes = reproduce(folder, changed, None).notes
    assert 'The recipe "my-own" is not the one that ships; it is in config.json, under reparam.recipe.' in notes


def test_a_model_of_a_class_of_ones_own_has_no_command(record: Record, folder: Path) -> None:
    spec = ModelSpec(source="module", name="mine.Net")
    changed = record.model_copy(update={"base": record.base.model_copy(update={"spec": spec})})
    found = reproduce(folder, changed, None)
    assert found.lines == ()
    assert found.notes == ("It was converted in Python, by reparam.convert, from a mine.Net.",)


def test_a_dense_model_has_no_command(folder: Path) -> None:
    assert reproduce(folder, read_record(folder / "dense"), None).lines == ()


def test_models_are_named_as_convert_takes_them(record: Record) -> None:
    tagged = ModelSpec(source="timm", name="deit_tiny", pretrained_cfg={"tag": "fb_in1k"})
    assert model_name(tagged, None) == "deit_tiny.fb_in1k"
    assert record.base.weights is not None
    weights = record.base.weights.model_copy(update={"kind": "local-dir", "source": "/some/folder"})
    assert model_name(ModelSpec(source="local-dir", name="deit_tiny"), weights) == "local-dir:/some/folder"


@pytest.mark.parametrize("text", ["stages: [", "- 1", "stages: 3"])
def test_args_that_reparam_did_not_write_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "args.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"args\.yaml"):
        read_args(tmp_path)


def test_a_run_without_args_has_none(tmp_path: Path) -> None:
    assert read_args(tmp_path) is None
    assert TrainSettings().epochs == 10
