"""Mixtures of every kind come back from a checkpoint: whole experts, routed layers, MLPs moved out of a forward."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.layers import GlobalResponseNormMlp, GluMlp
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam.checkpoint.load import load
from reparam.checkpoint.save import save
from tests.pico import MLP, images, recipe, token_net


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = MlpWithDepthwiseConv(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x, [4, 4])


class Plane(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = GlobalResponseNormMlp(8, 16, use_conv=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2)


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))


@pytest.mark.parametrize(
    "part", [lambda: GluMlp(8, 16), Depthwise, Plane, Written], ids=["gated", "conv", "map", "inline"]
)
def test_a_mixture_comes_back_as_it_was(part: Callable[[], nn.Module], tmp_path: Path) -> None:
    dense, x = token_net(part()), images()
    model = reparam.convert(copy.deepcopy(dense), recipe=recipe([MLP]), example_input=x).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        save(model.eval(), tmp_path / "run", example_input=x)
        loaded = load(tmp_path / "run", base=dense)
        assert list(loaded.state_dict()) == list(model.state_dict())
        assert torch.equal(loaded(x), model(x))
