"""Token MLPs are straight chains linear, activation, linear; heads, gates and position MLPs are not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.ops.site import MlpForm
from reparam.trace.probe import probe
from tests.pico import images, inline_net, token_net, vit


def mlps_of(model: nn.Module, x: Tensor | None = None) -> dict[str, MlpForm | None]:
    x = images() if x is None else x
    return {site.path: site.mlp for site in find_sites(Scene(model, probe(model, x))) if site.kind == "mlp"}


def test_timms_mlp_is_found_with_its_chain() -> None:
    chain = ("fc1", "act", "drop1", "norm", "fc2", "drop2")
    assert mlps_of(vit()) == {f"blocks.{i}.mlp": MlpForm(chain=chain, linears=("fc1", "fc2")) for i in (0, 1)}


def test_an_mlp_of_unknown_class_is_found() -> None:
    assert mlps_of(inline_net()) == {
        f"blocks.{i}.mlp": MlpForm(chain=("0", "1", "2"), linears=("0", "2")) for i in (0, 1)
    }


class Mlp(nn.Module):
    """Two linear layers and what is between and around them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.fc1, self.fc2, self.gate = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.act, self.norm, self.drop = nn.GELU(), nn.LayerNorm(8), nn.Dropout(0.1)

    def forward(self, x: Tensor, scale: bool = False) -> Tensor:
        y = self.fc1(x)
        match self.way:
            case "plain" | "flag":
                return self.fc2(self.drop(self.act(y)))
            case "no activation":
                return self.fc2(y)
            case "functional activation":
                return self.fc2(F.gelu(y))
            case "gated":
                return self.fc2(self.act(y) * self.gate(x))
            case "residual":
                return x + self.fc2(self.act(y))
            case "norm":
                return self.fc2(self.norm(self.act(y)))
            case "activation first":
                return self.fc2(self.fc1(self.act(x)))
        raise AssertionError(self.way)


def test_a_plain_chain_is_an_mlp() -> None:
    assert mlps_of(token_net(Mlp("plain"))) == {
        "attn": MlpForm(chain=("fc1", "act", "drop", "fc2"), linears=("fc1", "fc2"))
    }


@pytest.mark.parametrize(
    "way", ["no activation", "functional activation", "gated", "residual", "norm", "activation first"]
)
def test_anything_but_a_straight_chain_is_none(way: str) -> None:
    assert mlps_of(token_net(Mlp(way))) == {}


class WithFlag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp("flag")

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x, scale=False)


def test_an_mlp_that_takes_more_than_its_tokens_is_none() -> None:
    assert mlps_of(token_net(WithFlag())) == {}


def test_a_classifier_head_is_no_token_mlp() -> None:
    head = nn.Sequential(nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 3))
    assert mlps_of(nn.Sequential(nn.Flatten(), head)) == {}


class PositionBias(nn.Module):
    """Turns coordinates into a bias with an MLP, and tokens into tokens with another."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("coordinates", torch.zeros(1, 16, 2))
        self.bias = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8))
        self.tokens = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x) + self.bias(self.coordinates)


def test_an_mlp_over_coordinates_is_none() -> None:
    assert list(mlps_of(token_net(PositionBias()))) == ["attn.tokens"]
