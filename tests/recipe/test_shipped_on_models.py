"""Every shipped recipe on a small model of its family: it converts, trains a step, saves and loads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from reparam.models.cifar_resnet import CifarResNet
from reparam.recipe.resolve import resolve_settings
from reparam.recipe.shipped import shipped_recipes
from reparam.train.regime import apply_regime_
from tests.pico import images, vit


def resnet() -> nn.Module:
    """A ResNet-8 for 32x32 images."""
    torch.manual_seed(0)
    return CifarResNet(1, num_classes=3).eval()


CASES = [(name, resnet if "addernet" in name or "addnet" in name else vit) for name in shipped_recipes()]
CASES += [(name, resnet) for name in ("deepshift-q", "deepshift-ps", "shift-ptq-2term", "shift-ptq-calibrated")]


@pytest.mark.parametrize(("name", "base"), CASES)
def test_it_converts_trains_saves_and_loads(name: str, base: Callable[[], nn.Module], tmp_path: Path) -> None:
    pictures = images(32) if name.endswith("calibrated") else None
    conversion = reparam.convert(base(), name, example_input=images(), calibration=pictures)
    assert bool(conversion.plan.steps) == (name != "none")
    model = conversion.model.train()
    for stage in conversion.plan.recipe.stages:
        apply_regime_(model, resolve_settings(stage.finetune))
    trainable = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trainable]
    optimiser = torch.optim.SGD(trainable, lr=0.1)
    loss = nn.functional.cross_entropy(model(images(8)), torch.arange(8) % 3)
    loss.backward()
    optimiser.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(p, b) for p, b in zip(trainable, before, strict=True))
    reparam.save(model, tmp_path / "run")
    assert torch.equal(reparam.load(tmp_path / "run", base=base)(images()), model.eval()(images()))
