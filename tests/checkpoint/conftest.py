"""Pico models with and without a conversion."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from reparam.graph.plan import make_plan
from reparam.graph.provenance import Provenance, attach
from reparam.graph.records import Totals
from reparam.graph.rewrite import rewrite
from reparam.models.build import build_model, build_spec
from reparam.models.known import spec_of
from reparam.models.weights import given_weights
from reparam.recipe.load import load_recipe

Convert = Callable[..., nn.Module]


def make_pico(*, depth: int = 1, seed: int = 0, num_classes: int = 5) -> nn.Module:
    spec = build_spec(
        "vit_tiny_patch16_224",
        num_classes=num_classes,
        img_size=16,
        model_kwargs={"patch_size": 4, "embed_dim": 16, "depth": depth, "num_heads": 2},
    )
    torch.manual_seed(seed)
    return build_model(spec)


def do_convert(model: nn.Module, recipe: str = "shiftaddvit", *, shape: tuple[int, ...] = (1, 3, 16, 16)) -> nn.Module:
    spec, weights = spec_of(model), given_weights(model)
    example_input = torch.zeros(shape)
    plan = make_plan(
        model,
        load_recipe(recipe),
        example_input,
        count=lambda *_: Totals(parameters=0, operations={}),
        allow_partial=True,
    )
    rewrite(model, plan, example_input, verify=False)
    attach(model, Provenance(spec=spec, plan=plan, weights=weights))
    return model


@pytest.fixture(scope="session")
def pico() -> Convert:
    return make_pico


@pytest.fixture(scope="session")
def convert() -> Convert:
    return do_convert


class Custom(nn.Module):
    """A CNN that timm does not know."""

    def __init__(self, width: int = 4, output: str = "tensor") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.hidden = nn.Linear(width, 8)
        self.head = nn.Linear(8, 20)
        self.output = output

    def forward(self, x: torch.Tensor) -> object:
        features = self.norm(self.conv(x)).mean((2, 3))
        logits = self.head(self.hidden(features).relu())
        return {"tensor": logits, "dict": {"name": "net", "logits": logits}, "tuple": (None, [logits], features)}[
            self.output
        ]


@pytest.fixture(scope="session")
def custom() -> type[nn.Module]:
    return Custom
