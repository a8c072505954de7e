"""A ViT small enough to build in milliseconds, and models without a network."""

from collections.abc import Callable

import pytest

from reparam.models.build import build_spec
from reparam.models.spec import ModelSpec

PICO = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture
def pico_spec() -> Callable[..., ModelSpec]:
    def make(**changes: int) -> ModelSpec:
        arguments = {"num_classes": 5, "img_size": 16} | changes
        return build_spec("vit_tiny_patch16_224", **arguments, model_kwargs=PICO)

    return make


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.models.hub.hub_is_reachable", lambda: False)
