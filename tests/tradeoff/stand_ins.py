"""Sensitivities that were measured on nothing, so that searches and the command line are tested without a model."""

from typing import Any

from reparam.recipe.schema import Recipe
from reparam.tradeoff.records import DenseFigures, OtherSite, Sensitivity, SiteSensitivity, Subject
from tests.cli.stand_ins import RECIPE


def site(path: str, kl: float, drop: float, **extra: Any) -> SiteSensitivity:
    common: dict[str, Any] = {
        "kind": "linear",
        "operator": "shift_linear",
        "options": {"bits": 5},
        "recipe": "toy",
        "stage": "shift",
        "operations_change": {"mul.f32": -600, "shift.f32": 600},
        "parameters_change": 0,
        "weight_bytes_change": -300.0,
        "began_at": "blocks.1",
        "seconds": 1.5,
    }
    return SiteSensitivity(path=path, kl=kl, top1=90 - drop, top1_drop=drop, **{**common, **extra})


def found_of(*sites: SiteSensitivity, recipes: tuple[Recipe, ...] = (RECIPE,)) -> Sensitivity:
    return Sensitivity(
        subject=Subject(model="runs/x", weights="0" * 16, recipes=recipes, data={"data_dir": "d"}, images=1000),
        dense_top1=90.0,
        images=400,
        dense=DenseFigures(
            images=400,
            top1=90.0,
            top1_interval=(86.6, 92.6),
            operations={"mul.f32": 2000, "add.f32": 2000},
            parameters=1000,
            weight_bytes=4000.0,
        ),
        sites=sites,
        other_sites=(
            OtherSite(path="head", kind="linear", cause="keep", reason="the classifier feels rounding most"),
            OtherSite(path="blocks.0.mlp.fc1", kind="linear", cause="inside", reason="a part of it"),
        ),
        device="cpu",
        commands=("reparam sensitivity runs/x --data-dir d",),
    )
