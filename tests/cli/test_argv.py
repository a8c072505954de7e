import pytest

from reparam_cli.argv import repeat_many_valued, take_debug


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        pytest.param("plan m --model-kwargs a=1 b=2", "plan m --model-kwargs a=1 --model-kwargs b=2", id="several"),
        pytest.param("--model-kwargs a=1 --json", "--model-kwargs a=1 --json", id="one, then a flag"),
        pytest.param("--model-kwargs a=1 m", "--model-kwargs a=1 m", id="one, then the model"),
        pytest.param("--set a=1 b=2", "--set a=1 b=2", id="another flag is left alone"),
        pytest.param("--mean .5 -0.5 1e-3 m", "--mean .5 --mean -0.5 --mean 1e-3 m", id="numbers"),
        pytest.param("--mean 0.5 --std 1 2", "--mean 0.5 --std 1 --std 2", id="two lists"),
        pytest.param("--model-kwargs", "--model-kwargs", id="value missing"),
    ],
)
def test_values_after_a_many_valued_flag_get_a_flag_each(given: str, wanted: str) -> None:
    assert repeat_many_valued(given.split()) == wanted.split()


@pytest.mark.parametrize(
    ("given", "rest", "debug"),
    [
        pytest.param("plan m", "plan m", False, id="absent"),
        pytest.param("--debug plan m", "plan m", True, id="before"),
        pytest.param("plan m --debug", "plan m", True, id="after"),
        pytest.param("plan -- --debug", "plan -- --debug", False, id="an argument, not an option"),
        pytest.param("plan --debugger", "plan --debugger", False, id="another option"),
    ],
)
def test_debug_is_taken_out(given: str, rest: str, debug: bool) -> None:
    assert take_debug(given.split()) == (rest.split(), debug)
