import json
from pathlib import Path
from typing import Any

import pytest

import reparam
from reparam.tradeoff.outcome import TakenChoice
from tests.cli.conftest import RunCli


def predicted(sites: int, share: float, kl: float, drop: float) -> reparam.Predicted:
    shares = {"energy": share, "multiplications": 0.25, "size": 0.5}
    costs = {"energy": 35.7e6 * share, "multiplications": 2e6, "size": 0.9e6}
    return reparam.Predicted(sites=sites, kl=kl, top1_drop=drop, costs=costs, shares=shares)


def taken(path: str, operator: str = "shift_linear", **extra: Any) -> TakenChoice:
    return TakenChoice(
        path=path, kind="linear", operator=operator, options={}, top1_drop=0.1, kl=0.01, costs_change={}, **extra
    )


RESULT = reparam.SearchResult(
    model="runs/x",
    images=400,
    budgets=("energy=0.4x",),
    max_drop=1.0,
    quantity="energy",
    table="horowitz-45nm",
    unpriced=("exp.f32",),
    dense_top1=90.0,
    dense_costs={"energy": 35.7e6, "multiplications": 8e6, "size": 1.8e6},
    predicted=predicted(3, 0.38, 0.021, 0.75),
    taken=(
        taken("blocks.0.attn.qkv"),
        taken("blocks.1.attn.qkv"),
        taken("blocks.0.mlp", "moe_mlp", routing="all tokens to the shift expert"),
    ),
    front=tuple(predicted(n, 1 - n / 20, n / 100, n / 10) for n in range(15)),
    recipe="runs/x/searched.toml",
    commands=("reparam search runs/x --budget energy=0.4x",),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def search(source: str, **options: Any) -> object:
        arguments.update(options, source=source)
        return RESULT

    monkeypatch.setitem(vars(reparam), "search", search)
    return arguments


def test_options_reach_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = "search runs/x --budget energy=0.4x --budget size=2MB --max-drop 1.5 --table t.toml --out r.toml"
    assert run_cli(*line.split()).code == 0
    assert asked == {
        "source": "runs/x",
        "budget": ["energy=0.4x", "size=2MB"],
        "max_drop": 1.5,
        "minimise": "energy",
        "table": "t.toml",
        "out": Path("r.toml"),
    }


def test_without_a_name_the_analysis_here_is_searched(run_cli: RunCli, asked: dict[str, Any]) -> None:
    assert run_cli("search", "--max-drop", "1").code == 0
    assert asked["source"] == "."


def test_the_mix_stands_beside_the_dense_model_and_figures_carry_their_kind(
    run_cli: RunCli, asked: dict[str, Any]
) -> None:
    lines = [" ".join(line.split()) for line in run_cli("search", "--max-drop", "1").out.splitlines()]
    for line in (
        "runs/x: 3 sites converted",
        "shift_linear blocks.0-1.attn.qkv",
        "moe_mlp blocks.0.mlp",
        "top-1 90.00 % 89.25 % -0.75",
        "KL(dense || mix), nats 0 2.10e-02",
        "energy 35.7 uJ 13.6 uJ 0.380x",
        "multiplications 8.00 M 2.00 M 0.250x",
        "1.000x 0 0.00e+00 0.00",
        "0.300x 14 1.40e-01 1.40",
        "energy is modelled by the table horowitz-45nm, per image; multiplications are counted",
        "without a price in horowitz-45nm, so free here: exp.f32",
        "recipe written to runs/x/searched.toml",
    ):
        assert line in lines
    assert any(line.startswith("predicted: sums of what each site loses alone") for line in lines)
    assert any("all tokens to the shift expert" in line for line in lines)


def test_json_is_the_result(run_cli: RunCli, asked: dict[str, Any]) -> None:
    assert reparam.SearchResult.model_validate(json.loads(run_cli("search", "--json").out)) == RESULT


def test_a_budget_that_cannot_be_met_is_exit_code_two(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise reparam.errors.BudgetError("no mix keeps to energy=0.1x.\nbest reachable at all: energy=0.300x")

    monkeypatch.setitem(vars(reparam), "search", refuse)
    answer = run_cli("search", "--budget", "energy=0.1x")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines()[1].strip() == "best reachable at all: energy=0.300x"
