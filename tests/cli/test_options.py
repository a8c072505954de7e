"""The command line's options: made from the settings' dataclasses, and frozen in `options.txt`."""

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

import reparam
from reparam_cli.main import app
from reparam_cli.options import HEADINGS, parse_pairs
from tests.cli.conftest import RunCli

GOLDEN = Path(__file__).with_name("options.txt")


def test_the_options_are_the_ones_in_the_golden_file() -> None:
    """Set REPARAM_UPDATE_GOLDEN=1 to rewrite the file after a deliberate change, and say so in the changelog."""
    found = "".join(f"{line}\n" for line in _options(typer.main.get_command(app), "reparam"))
    if os.environ.get("REPARAM_UPDATE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")


def test_every_setting_is_an_option_of_finetune_described_in_its_own_words() -> None:
    finetune: Any = typer.main.get_command(app)
    described = {param.name: param.help for param in finetune.commands["finetune"].params}
    for table in (reparam.TrainSettings, reparam.DataSettings):
        for entry in fields(table):
            assert described[entry.name].startswith(entry.metadata["help"])


def test_headings_begin_at_settings_that_exist() -> None:
    assert set(HEADINGS) <= {entry.name for entry in fields(reparam.TrainSettings)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def finetune(source: str, **options: Any) -> object:
        arguments.update(options, source=source)
        raise reparam.errors.TrainError("far enough")

    monkeypatch.setitem(vars(reparam), "finetune", finetune)
    return arguments


def test_settings_that_were_not_given_stay_the_recipes(run_cli: RunCli, asked: dict[str, Any]) -> None:
    run_cli("finetune", "runs/x", "--data-dir", "d")
    assert asked["settings"] == {}
    assert asked["data"] == reparam.DataSettings(data_dir="d")


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        pytest.param("--epochs 3 --lr 1e-3 --opt sgd", {"epochs": 3, "lr": 1e-3, "opt": "sgd"}, id="numbers and words"),
        pytest.param("-b 32 -vb 64 -j 0", {"batch_size": 32, "validation_batch_size": 64, "workers": 0}, id="short"),
        pytest.param("--batch-size 32", {"batch_size": 32}, id="long"),
        pytest.param("--no-aug --model-ema", {"no_aug": True, "model_ema": True}, id="one-sided flags"),
        pytest.param("--scale 0.8 1.0", {"scale": (0.8, 1.0)}, id="pair"),
        pytest.param("--clip-grad none", {"clip_grad": None}, id="none is a value"),
        pytest.param("--clip-grad 0.5 --aa rand-m9", {"clip_grad": 0.5, "aa": "rand-m9"}, id="optional values"),
        pytest.param("--epochs 10", {"epochs": 10}, id="a default that is given is given"),
    ],
)
def test_settings_that_were_given_are_passed_on(
    run_cli: RunCli, asked: dict[str, Any], line: str, settings: dict[str, Any]
) -> None:
    run_cli("finetune", "runs/x", *line.split())
    assert asked["settings"] == settings


def test_one_value_per_channel_may_follow_mean_and_std(run_cli: RunCli, asked: dict[str, Any]) -> None:
    run_cli("finetune", "runs/x", "--mean", "0.5", "0.4", "0.3", "--std", "1")
    assert (asked["data"].mean, asked["data"].std) == ((0.5, 0.4, 0.3), (1.0,))


@pytest.mark.parametrize("flag", ["--no-no-aug", "--aug", "--no-model-ema"])
def test_flags_have_no_second_side(run_cli: RunCli, asked: dict[str, Any], flag: str) -> None:
    assert run_cli("finetune", "runs/x", flag).code == 2
    assert asked == {}


def test_pairs_are_literals_where_they_look_like_one() -> None:
    words = ["depth=2", "rate=0.1", "token=False", "act=gelu", "name='2'", "no=none", "sizes=(1, 2)", "path=a=b"]
    assert parse_pairs(words, flag="--x") == {
        "depth": 2,
        "rate": 0.1,
        "token": False,
        "act": "gelu",
        "name": "2",
        "no": None,
        "sizes": (1, 2),
        "path": "a=b",
    }


def _options(command: Any, path: str) -> Iterator[str]:
    for param in command.params:
        names = ", ".join(sorted(param.opts, key=len)) if param.param_type_name == "option" else param.name.upper()
        traits = [trait for trait in ("required", "multiple") if getattr(param, trait, False)]
        if param.nargs > 1:
            traits.append(f"{param.nargs} values")
        if getattr(param, "is_flag", False):
            traits.append("flag")
        yield f"{path} {names}" + (f" ({', '.join(traits)})" if traits else "")
    for name, inner in getattr(command, "commands", {}).items():
        yield from _options(inner, f"{path} {name}")
