"""Training settings from tables: merging, conversions, and every fault at once."""

import dataclasses
import math

import pytest

from reparam.errors import OptionError
from reparam.recipe.expert_latency import parse_latency
from reparam.recipe.resolve import resolve_settings, setting_faults
from reparam.recipe.settings import TrainSettings

LATENCY = "wanted recipe, measured, modelled, or two finite numbers above 0 such as 0.6,0.4, got "


def test_nothing_gives_the_defaults() -> None:
    assert resolve_settings() == resolve_settings({}, {}) == TrainSettings()


def test_the_defaults_themselves_are_valid() -> None:
    assert resolve_settings(dataclasses.asdict(TrainSettings())) == TrainSettings()


def test_a_later_table_wins() -> None:
    settings = resolve_settings({"epochs": 3, "lr": 1e-3}, {"epochs": 5})
    assert settings == dataclasses.replace(TrainSettings(), epochs=5, lr=1e-3)


def test_whole_numbers_pass_for_numbers_lists_for_pairs_and_none_for_absence() -> None:
    settings = resolve_settings({"lr": 1, "scale": [0.5, 1], "clip_grad": "none", "aa": "none", "drop_path": None})
    assert settings.lr == 1.0
    assert type(settings.lr) is float
    assert settings.scale == (0.5, 1.0)
    assert (settings.clip_grad, settings.aa, settings.drop_path) == (None, None, None)


@pytest.mark.parametrize("text", ["recipe", "measured", "modelled", "0.6,0.4", " 3 , 1e-2"])
def test_latencies_are_named_or_given_as_two_numbers(text: str) -> None:
    assert resolve_settings({"latency": text}).latency == text
    assert parse_latency(text) == {"0.6,0.4": (0.6, 0.4), " 3 , 1e-2": (3.0, 0.01)}.get(text, text)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("epoch", 3, 'unknown setting. Did you mean "epochs"?'),
        ("epochs", "3", "wanted a whole number, got '3'"),
        ("epochs", 3.0, "wanted a whole number, got 3.0"),
        ("epochs", True, "wanted a whole number, got True"),
        ("epochs", -1, "wanted at least 0, got -1"),
        ("epochs", None, "wanted a whole number, got None"),
        ("batch_size", 0, "wanted at least 1, got 0"),
        ("lr", True, "wanted a number, got True"),
        ("lr", math.nan, "wanted a finite number, got nan"),
        ("lr", math.inf, "wanted a finite number, got inf"),
        ("lr", 10**400, "wanted a finite number, got one with over 300 digits"),
        ("amp", 1, "wanted true or false, got 1"),
        ("opt", 1, "wanted a string, got 1"),
        ("clip_grad", "no", "wanted a number, got 'no'"),
        ("scale", [0.5], "wanted two numbers, got [0.5]"),
        ("scale", 0.5, "wanted two numbers, got 0.5"),
        ("scale", ["a", 1], "wanted a number, got 'a'"),
        ("scale", [1, 0.5], "wanted the smaller number first, got [1, 0.5]"),
        ("hflip", 1.5, "wanted at most 1, got 1.5"),
        ("kd_temperature", 0, "wanted a number above 0, got 0"),
        ("latency", "measure", f'{LATENCY}"measure": it has 1 part and "measure" is not a number'),
        ("latency", "0.6,0", f'{LATENCY}"0.6,0": "0" is not above 0'),
        ("latency", "inf,-1", f'{LATENCY}"inf,-1": "inf" is not finite and "-1" is not above 0'),
        ("latency", "1,x,nan", f'{LATENCY}"1,x,nan": it has 3 parts and "x" is not a number and "nan" is not finite'),
        ("latency", 0.5, "wanted a string, got 0.5"),
        ("amp_dtype", "half", "wanted 'bfloat16' or 'float16', got 'half'"),
    ],
)
def test_a_faulty_setting_says_what_was_wanted_and_got(key: str, value: object, fault: str) -> None:
    assert setting_faults({key: value, "lr" if key != "lr" else "seed": 1}) == {key: fault}


def test_a_setting_that_resembles_none_lists_them_all() -> None:
    fault = setting_faults({"qqqq": 1})["qqqq"]
    assert fault.startswith("unknown setting. Known: epochs, batch_size, ")
    assert fault.endswith("log_with.")


def test_all_faults_of_all_tables_come_in_one_error_each_once() -> None:
    with pytest.raises(OptionError) as caught:
        resolve_settings({"epoch": 3, "lr": "fast"}, {"lr": "fast", "amp": "yes"})
    assert str(caught.value).splitlines() == [
        'setting "epoch": unknown setting. Did you mean "epochs"?',
        "setting \"lr\": wanted a number, got 'fast'",
        "setting \"amp\": wanted true or false, got 'yes'",
    ]
