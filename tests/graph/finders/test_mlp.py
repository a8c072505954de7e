"""Token MLPs are found by what flows between their layers; heads, gates, mixers and convolution blocks are not."""

from collections.abc import Callable

import pytest
import torch
from timm.layers import ConvMlp, GlobalResponseNormMlp, GluMlp, LayerNorm2d, SwiGLU
from timm.layers import Mlp as TimmMlp
from timm.models.levit import LevitMlp
from timm.models.mlp_mixer import GatedMlp, MixerBlock, SpatialGatingUnit
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from timm.models.repvit import RepVitMlp
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.graph.finders.mlp import why_no_mlp
from reparam.ops.site import MlpForm
from reparam.trace.probe import probe
from tests.pico import MLP, WIDTH, TokenNet, convert, images, inline_net, recipe, token_net, vit

FIRST_AND_LAST = ("fc1", "fc2")


def scene_of(model: nn.Module, x: Tensor | None = None) -> Scene:
    return Scene(model, probe(model, images() if x is None else x))


def mlps_of(model: nn.Module, x: Tensor | None = None) -> dict[str, MlpForm | None]:
    return {site.path: site.mlp for site in find_sites(scene_of(model, x)) if site.kind == "mlp"}


def reason_of(model: nn.Module, path: str, x: Tensor | None = None) -> str:
    """The reason why the module at `path`, which is no site, is none."""
    scene = scene_of(model, x)
    assert path not in {site.path for site in find_sites(scene) if site.kind == "mlp"}
    reason = why_no_mlp(scene, path)
    assert reason is not None
    return reason


def test_timms_mlp_is_found_with_its_chain() -> None:
    chain = ("fc1", "act", "drop1", "norm", "fc2", "drop2")
    assert mlps_of(vit()) == {f"blocks.{i}.mlp": MlpForm(linears=FIRST_AND_LAST, chain=chain) for i in (0, 1)}


def test_an_mlp_of_unknown_class_is_found() -> None:
    assert mlps_of(inline_net()) == {
        f"blocks.{i}.mlp": MlpForm(linears=("0", "2"), chain=("0", "1", "2")) for i in (0, 1)
    }


class Mlp(nn.Module):
    """Linear layers and what is between and around them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.fc1, self.fc2, self.gate = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.act, self.norm, self.drop = nn.GELU(), nn.LayerNorm(8), nn.Dropout(0.1)
        self.places, self.square = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor, scale: bool = False, other: Tensor | None = None) -> Tensor:
        y = self.fc1(x)
        match self.way:
            case "plain":
                return self.fc2(self.drop(self.act(y)))
            case "functional activation":
                return self.fc2(F.gelu(y))
            case "own activation":
                return self.fc2(0.5 * y * (1 + torch.tanh(0.8 * (y + 0.04 * y**3))))
            case "gated":
                return self.fc2(self.act(y) * self.gate(x))
            case "halves":
                return self.fc2(torch.cat([self.act(y[..., :4]), y[..., 4:]], dim=-1))
            case "norm":
                return self.fc2(self.norm(self.act(y)))
            case "own norm":
                return self.fc2(y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * y.sigmoid())
            case "three layers":
                return self.fc2(self.act(self.gate(self.act(y))))
            case "functional layer":
                return F.linear(F.gelu(y), self.fc2.weight)
            case "places":
                return self.fc2(self.act(y) * self.places)
            case "pooled":
                return self.fc2(self.act(y) * y.mean(dim=1, keepdim=True))
            case "flattened":
                return self.fc2(self.act(y.flatten(0, 1))).unflatten(0, x.shape[:2])
            case "no activation":
                return self.fc2(y)
            case "activation first":
                return self.fc2(self.gate(self.act(x)))
            case "residual":
                return x + self.fc2(self.act(y))
            case "own gate":
                return x * self.fc2(self.act(y)).sigmoid()
            case "uneven":
                return self.fc2(self.act(y) * self.gate(self.act(y)))
            case "softmax":
                return self.fc2(self.act(y).softmax(dim=-1) * y)
            case "another tensor":
                return self.fc2(self.act(y) * other)
            case "twice":
                return self.fc1(self.act(y))
            case "no layer":
                return self.fc2(self.act(F.linear(x, self.square)))
            case "fewer tokens":
                return self.fc2(self.act(y))[:, ::2]
            case "called by weight":
                return F.linear(self.act(y) * self.places, self.fc2.weight)
            case "residual and more":
                return x + self.fc2(self.act(y)) + self.norm(y)
            case "beside itself":
                return self.fc2(self.act(y)) + self.norm(y)
            case "two results":
                return self.fc2(self.act(y)), y  # type: ignore[return-value]
        raise AssertionError(self.way)


def form_of_way(way: str) -> MlpForm | None:
    return mlps_of(token_net(Mlp(way))).get("attn")


def test_a_plain_chain_is_an_mlp() -> None:
    assert form_of_way("plain") == MlpForm(linears=FIRST_AND_LAST, chain=("fc1", "act", "drop", "fc2"))


@pytest.mark.parametrize(
    "way", ["functional activation", "own activation", "halves", "norm", "own norm", "functional layer"]
)
def test_what_treats_tokens_one_by_one_is_no_chain_but_an_mlp(way: str) -> None:
    assert form_of_way(way) == MlpForm(linears=FIRST_AND_LAST)


def test_a_gate_product_of_two_layers_is_inside() -> None:
    assert form_of_way("gated") == MlpForm(linears=("fc1", "gate", "fc2"))


def test_more_than_two_layers_in_a_row_are_one_mlp() -> None:
    assert form_of_way("three layers") == MlpForm(
        linears=("fc1", "gate", "fc2"), chain=("fc1", "act", "gate", "act", "fc2")
    )


@pytest.mark.parametrize("way", ["places", "pooled", "flattened"])
def test_what_may_not_treat_tokens_one_by_one_is_said_to_mix_them(way: str) -> None:
    assert form_of_way(way) == MlpForm(linears=FIRST_AND_LAST, mixes_tokens=True)


class BareNet(TokenNet):
    """TokenNet without the residual around its part, which may so change the number of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.attn(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(tokens.mean(dim=1))


NONE = {
    "no activation": "no activation stands between its layers",
    "activation first": "no activation stands between its layers",
    "called by weight": 'the weight of its layer "attn.fc2" is read without calling the layer',
    "residual and more": "its input reaches its output beside its layers, as a residual or a gate does",
    "beside itself": "some paths through it pass 1 of its layers and others 2",
    "uneven": "some paths through it pass 2 of its layers and others 3",
    "softmax": "'softmax' in it mixes tokens by what they hold, as attention does",
    "twice": 'it runs its layer "attn.fc1" twice',
    "no layer": 'the weight in "attn" belongs to no linear layer and no convolution',
}


@pytest.mark.parametrize("way", NONE)
def test_what_is_no_mlp_is_none_for_a_stated_reason(way: str) -> None:
    assert reason_of(BareNet(Mlp(way)), "attn") == NONE[way]


class Calls(nn.Module):
    """Calls an MLP in some way."""

    def __init__(self, way: str, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.mlp, self.call, self.extra = Mlp(way), call, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def test_further_arguments_are_passed_on_and_no_part_of_a_chain() -> None:
    model = token_net(Calls("plain", lambda m, x: m.mlp(x, scale=False)))
    assert mlps_of(model) == {"attn.mlp": MlpForm(linears=FIRST_AND_LAST)}


def test_an_mlp_that_reads_another_map_is_none() -> None:
    model = token_net(Calls("another tensor", lambda m, x: m.mlp(x, other=m.extra(x))))
    assert reason_of(model, "attn.mlp") == "'mul' in it reads a value from outside"


def test_an_mlp_with_two_results_is_none() -> None:
    model = token_net(Calls("two results", lambda m, x: m.mlp(x)[0]))
    assert reason_of(model, "attn.mlp") == "it maps 1 tensors to 2; wanted one output"


def test_an_mlp_whose_layer_is_read_elsewhere_is_none() -> None:
    model = token_net(Calls("plain", lambda m, x: m.mlp(x) + F.linear(x, m.mlp.fc1.weight)))
    assert (
        reason_of(model, "attn.mlp") == "the weight of its layer \"attn.mlp.fc1\" is read outside it too, by 'linear'"
    )


def test_an_mlp_around_another_leaves_the_place_to_it() -> None:
    model = token_net(Calls("plain", lambda m, x: m.mlp(x)))
    assert list(mlps_of(model)) == ["attn.mlp"]
    assert reason_of(model, "attn") == 'its part "attn.mlp" is the MLP'


def test_what_was_never_called_is_none() -> None:
    model = token_net(Calls("plain", lambda m, x: x))
    assert reason_of(model, "attn.mlp") == "it took no part in the run"


def test_a_converted_mlp_is_none_any_more() -> None:
    model = convert(vit(), recipe([MLP]))
    assert reason_of(model, "blocks.0.mlp") == "it is converted already, or a part of what is"


def test_a_classifier_head_is_no_token_mlp() -> None:
    head = nn.Sequential(nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 3))
    assert (
        reason_of(nn.Sequential(nn.Flatten(), head), "1") == "its input has shape (2, 768), which is no map of tokens"
    )


def test_a_dense_head_is_no_token_mlp_but_the_last_mlp_of_a_headless_model_is() -> None:
    model = vit(num_classes=0, global_pool="")
    assert list(mlps_of(model)) == ["blocks.0.mlp", "blocks.1.mlp"]
    model.norm = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    assert reason_of(model, "norm") == "it ends the model and changes the width: it is a head"


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
    model = token_net(PositionBias())
    assert list(mlps_of(model)) == ["attn.tokens"]
    assert reason_of(model, "attn.bias").startswith("its input does not depend on the model's input")


class MapNet(nn.Module):
    """A stem, a residual branch over maps (B, 8, 4, 4) or, `last`, (B, 4, 4, 8), the mean, a classifier."""

    def __init__(self, mlp: nn.Module, *, last: bool = False) -> None:
        super().__init__()
        self.stem, self.mlp, self.last, self.head = nn.Conv2d(3, WIDTH, 4, stride=4), mlp, last, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + (self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.mlp(x))
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """timm's MLP of PVTv2 on the 4x4 tokens of TokenNet."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MlpWithDepthwiseConv(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x, [4, 4])


MIXED = MlpForm(linears=FIRST_AND_LAST, mixes_tokens=True)
MAPS = MlpForm(linears=FIRST_AND_LAST, layout="channels_first")
MIXED_MAPS = MlpForm(linears=FIRST_AND_LAST, layout="channels_first", mixes_tokens=True)
KINDS: dict[str, tuple[Callable[[], nn.Module], str, MlpForm]] = {
    "GluMlp": (lambda: token_net(GluMlp(8, 16)), "attn", MlpForm(linears=FIRST_AND_LAST)),
    "GluMlp with norm": (
        lambda: token_net(GluMlp(8, 16, norm_layer=nn.LayerNorm)), "attn", MlpForm(linears=FIRST_AND_LAST),
    ),
    "GluMlp of maps": (lambda: MapNet(GluMlp(8, 16, use_conv=True)), "mlp", MAPS),
    "SwiGLU": (lambda: token_net(SwiGLU(8, 16)), "attn", MlpForm(linears=("fc1_g", "fc1_x", "fc2"))),
    "Mlp with norm": (lambda: token_net(TimmMlp(8, norm_layer=nn.LayerNorm)), "attn", MlpForm(linears=FIRST_AND_LAST)),
    "Mlp of maps": (lambda: MapNet(TimmMlp(8, use_conv=True)), "mlp", MAPS),
    "Mlp of maps, channels last": (
        lambda: MapNet(TimmMlp(8), last=True),
        "mlp",
        MlpForm(linears=FIRST_AND_LAST, chain=("fc1", "act", "drop1", "norm", "fc2", "drop2")),
    ),
    "ConvMlp": (lambda: MapNet(ConvMlp(8)), "mlp", MAPS),
    "ConvMlp with layer norm": (lambda: MapNet(ConvMlp(8, norm_layer=LayerNorm2d)), "mlp", MAPS),
    "ConvMlp with batch norm": (lambda: MapNet(ConvMlp(8, norm_layer=nn.BatchNorm2d)), "mlp", MIXED_MAPS),
    "GlobalResponseNormMlp": (lambda: MapNet(GlobalResponseNormMlp(8, use_conv=True)), "mlp", MIXED_MAPS),
    "GlobalResponseNormMlp, channels last": (lambda: MapNet(GlobalResponseNormMlp(8), last=True), "mlp", MIXED),
    "PVTv2": (lambda: token_net(Depthwise()), "attn.mlp", MIXED),
    "LeViT": (
        lambda: token_net(LevitMlp(8, 16, use_conv=False)),
        "attn",
        MlpForm(linears=("ln1.linear", "ln2.linear"), mixes_tokens=True),
    ),
    "RepViT": (
        lambda: MapNet(RepVitMlp(8, 16, nn.GELU)),
        "mlp",
        MlpForm(linears=("conv1.c", "conv2.c"), layout="channels_first", mixes_tokens=True),
    ),
    "gMLP": (lambda: token_net(GatedMlp(8, 16, gate_layer=lambda d, **_: SpatialGatingUnit(d, 16))), "attn", MIXED),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_kind_is_found(kind: str) -> None:
    make, path, form = KINDS[kind]
    torch.manual_seed(0)
    assert mlps_of(make().eval()) == {path: form}


class SqueezeAndExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


def bottleneck(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), *between, nn.Conv2d(16, 8, 1))


def test_squeeze_and_excite_is_none_and_stays_inside_an_mlp() -> None:
    model = MapNet(SqueezeAndExcite())
    assert reason_of(model, "mlp.gate") == "it sees one token for each image, so there is nothing to route"
    inside = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), SqueezeAndExcite(), nn.Conv2d(8, 8, 1))
    expected = MlpForm(linears=("0", "3"), layout="channels_first", mixes_tokens=True)
    assert mlps_of(MapNet(inside)) == {"mlp": expected}


def test_convolution_blocks_are_none() -> None:
    depthwise = MapNet(bottleneck(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU()))
    assert reason_of(depthwise, "mlp").startswith("it is a convolution block")
    dense = MapNet(bottleneck(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))
    wanted = "a convolution with weight (16, 16, 3, 3) in it mixes channels and places at once"
    assert reason_of(dense, "mlp") == wanted


def test_a_mixer_block_gives_the_mlp_over_channels_and_not_that_over_tokens() -> None:
    model = token_net(MixerBlock(8, 16))
    assert list(mlps_of(model)) == ["attn.mlp_channels"]
    assert reason_of(model, "attn.mlp_tokens").startswith("it acts along the tokens, not along the channels")


def test_an_mlp_over_a_row_of_the_image_is_none() -> None:
    mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    assert reason_of(MapNet(mlp), "mlp").startswith("it acts along the tokens, not along the channels")


def test_a_model_of_tokens_has_mlps_over_its_last_axis() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)), nn.Linear(8, 8))
    assert list(mlps_of(model, torch.randn(2, 16, 8))) == ["1"]


def test_attention_is_no_mlp() -> None:
    assert "mixes tokens by what they hold" in reason_of(vit(), "blocks.0.attn")
