"""Which layers are the first or the last of a model, and whose output a normalisation reads, by its dataflow."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.ops.conv_form import NOT_CALLED
from reparam.ops.site import Site
from reparam.trace.probe import probe
from tests.pico import cnn, images, plan_for, recipe, vit

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Named parts and a forward over them."""

    def __init__(self, forward: Forward, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def layers_of(model: nn.Module, x: Tensor) -> dict[str, Site]:
    sites = find_sites(Scene(model, probe(model, x)))
    return {site.path: site for site in sites if site.kind in ("linear", "conv2d")}


def conv(inputs: int = 3, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def first_and_last(model: nn.Module, x: Tensor) -> tuple[set[str], set[str]]:
    """Of the layers that some operator can take."""
    sites = [site for site in layers_of(model, x).values() if site.refusal is None]
    return {site.path for site in sites if site.is_first}, {site.path for site in sites if site.is_last}


#: Of images (2, 3, 16, 16): the parts, the forward, which are first, which are last.
EDGES: dict[str, tuple[dict[str, nn.Module], Forward, set[str], set[str]]] = {
    "a chain": (
        {"stem": conv(), "norm": nn.BatchNorm2d(4), "mid": conv(4), "head": nn.Linear(4, 2)},
        lambda m, x: m.head(m.mid(m.norm(m.stem(x)).relu()).mean((2, 3))),
        {"stem"},
        {"head"},
    ),
    "one layer": ({"only": conv()}, lambda m, x: m.only(x), {"only"}, {"only"}),
    "two stems": (
        {"a": conv(), "b": conv(), "mid": conv(4), "head": nn.Linear(4, 2)},
        lambda m, x: m.head(m.mid(m.a(x) + m.b(F.avg_pool2d(x, 3, 1, 1))).mean((2, 3))),
        {"a", "b"},
        {"head"},
    ),
    "a stem behind a reshape and a normalisation": (
        {"norm": nn.BatchNorm2d(3), "stem": conv(12), "head": nn.Linear(4, 2)},
        lambda m, x: m.head(m.stem(F.pixel_unshuffle((m.norm(x) - 0.5) / 0.25, 2)).mean((2, 3))),
        {"stem"},
        {"head"},
    ),
    "a stem over patches": (
        {"stem": nn.Linear(48, 8), "head": nn.Linear(8, 2)},
        lambda m, x: m.head(m.stem(F.unfold(x, 4, stride=4).transpose(1, 2)).mean(1)),
        {"stem"},
        {"head"},
    ),
    "the image is read again later": (
        {"stem": conv(), "late": conv(7), "head": nn.Linear(4, 2)},
        lambda m, x: m.head(m.late(torch.cat([x, m.stem(x)], 1)).mean((2, 3))),
        {"stem"},
        {"head"},
    ),
    "two heads": (
        {"stem": conv(), "a": nn.Linear(4, 2), "b": nn.Linear(4, 3)},
        lambda m, x: (lambda y: {"a": m.a(y).softmax(-1), "b": [m.b(y)]})(m.stem(x).mean((2, 3))),
        {"stem"},
        {"a", "b"},
    ),
    "one head feeds the other": (
        {"stem": conv(), "a": nn.Linear(4, 2), "b": nn.Linear(2, 3)},
        lambda m, x: (lambda y: (y, m.b(y)))(m.a(m.stem(x).mean((2, 3)))),
        {"stem"},
        {"b"},
    ),
    "pooled and normalised behind": (
        {"stem": conv(), "last": conv(4), "norm": nn.BatchNorm2d(4)},
        lambda m, x: m.norm(m.last(m.stem(x))).mean((2, 3)).log_softmax(-1),
        {"stem"},
        {"last"},
    ),
    "a gate at the end": (
        {"stem": conv(), "gate": nn.Linear(4, 2), "value": nn.Linear(4, 2)},
        lambda m, x: (lambda y: m.gate(y).sigmoid() * m.value(y))(m.stem(x).mean((2, 3))),
        {"stem"},
        {"gate", "value"},
    ),
    "positions from parameters": (
        {"positions": nn.Embedding(16, 8), "place": nn.Linear(8, 8), "stem": nn.Linear(48, 8), "head": nn.Linear(8, 2)},
        lambda m, x: m.head(m.stem(F.unfold(x, 4, stride=4).mT).add(m.place(m.positions.weight)).mean(1)),
        {"stem"},
        {"head"},
    ),
    "a product before and behind": (
        {"fc": nn.Linear(16, 16)},
        lambda m, x: m.fc(x @ x.mT) @ x,
        set(),
        set(),
    ),
    "attention before": (
        {"fc": nn.Linear(16, 16)},
        lambda m, x: m.fc(F.scaled_dot_product_attention(x, x, x)),
        set(),
        {"fc"},
    ),
    "attention in one function behind": (
        {"fc": nn.Linear(16, 16), "attn": nn.MultiheadAttention(16, 2, batch_first=True)},
        lambda m, x: (lambda y: m.attn(y, y, y)[0])(m.fc(x.flatten(1, 2))),
        {"fc"},
        set(),
    ),
    "attention in one function before": (
        {"fc": nn.Linear(16, 16), "attn": nn.MultiheadAttention(16, 2, batch_first=True)},
        lambda m, x: (lambda y: m.fc(m.attn(y, y, y)[0]))(x.flatten(1, 2)),
        set(),
        {"fc"},
    ),
    "a layer of another kind before and behind": (
        {"up": nn.ConvTranspose2d(3, 3, 2, stride=2), "mid": conv(), "volume": nn.Conv3d(4, 1, 1)},
        lambda m, x: m.volume(m.mid(m.up(x)).unsqueeze(2)),
        set(),
        set(),
    ),
    "a product with an addend before": (
        {"table": nn.Linear(16, 16), "fc": nn.Linear(16, 2)},
        lambda m, x: m.fc(torch.addmm(m.table.bias, x.flatten(0, 2), m.table.weight)),
        set(),
        {"fc"},
    ),
    "one layer called twice": (
        {"fc": nn.Linear(16, 16)},
        lambda m, x: m.fc(m.fc(x).relu()),
        set(),
        set(),
    ),
    "only its weight is read": (
        {"stem": conv(), "head": nn.Linear(4, 2)},
        lambda m, x: F.linear(F.conv2d(x, m.stem.weight).mean((2, 3)), m.head.weight),
        {"stem"},
        {"head"},
    ),
    "a layer that took no part": (
        {"idle": conv(), "only": conv()},
        lambda m, x: m.only(x),
        {"only"},
        {"only"},
    ),
}


@pytest.mark.parametrize(("parts", "forward", "first", "last"), EDGES.values(), ids=EDGES)
def test_the_first_and_the_last_layers_of_a_model(
    parts: dict[str, nn.Module], forward: Forward, first: set[str], last: set[str]
) -> None:
    assert first_and_last(Net(forward, parts).eval(), images()) == (first, last)


#: How the output of a convolution with 4 channels is read, and whether a normalisation alone does.
READERS: dict[str, tuple[dict[str, nn.Module], Forward, bool]] = {
    "batch norm": ({"norm": nn.BatchNorm2d(4)}, lambda m, y: m.norm(y).relu(), True),
    "group norm": ({"norm": nn.GroupNorm(2, 4)}, lambda m, y: m.norm(y), True),
    "instance norm": ({"norm": nn.InstanceNorm2d(4)}, lambda m, y: m.norm(y), True),
    "a norm and its activation": ({"norm": BatchNormAct2d(4)}, lambda m, y: m.norm(y), True),
    "layer norm behind a permutation": (
        {"norm": nn.LayerNorm(4)},
        lambda m, y: m.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        True,
    ),
    "layer norm over tokens": ({"norm": nn.LayerNorm(4)}, lambda m, y: m.norm(y.flatten(2).transpose(1, 2)), True),
    "layer norm over channels": ({"norm": LayerNorm2d(4)}, lambda m, y: m.norm(y), True),
    "RMS norm": ({"norm": nn.RMSNorm(4)}, lambda m, y: m.norm(y.movedim(1, -1)), True),
    "a norm written out": ({}, lambda m, y: F.layer_norm(y.contiguous(), y.shape[1:]), True),
    "two norms": ({"a": nn.BatchNorm2d(4), "b": nn.GroupNorm(2, 4)}, lambda m, y: m.a(y) + m.b(y), True),
    "a norm and a residual": ({"norm": nn.BatchNorm2d(4)}, lambda m, y: m.norm(y) + y, False),
    "a norm and a residual behind a permutation": (
        {"norm": nn.LayerNorm(4)},
        lambda m, y: (lambda z: m.norm(z) + z)(y.permute(0, 2, 3, 1)),
        False,
    ),
    "a norm and the model's output": ({"norm": nn.BatchNorm2d(4)}, lambda m, y: (m.norm(y), y), False),
    "a norm, and the output in another layout": (
        {"norm": nn.LayerNorm(4)},
        lambda m, y: (lambda z: (m.norm(z), z))(y.permute(0, 2, 3, 1)),
        False,
    ),
    "an activation before the norm": ({"norm": nn.BatchNorm2d(4)}, lambda m, y: m.norm(y.relu()), False),
    "an activation in place before the norm": (
        {"act": nn.ReLU(inplace=True), "norm": nn.BatchNorm2d(4)},
        lambda m, y: m.norm(m.act(y)),
        False,
    ),
    "a pool before the norm": ({"norm": nn.LayerNorm(4)}, lambda m, y: m.norm(y.mean((2, 3))), False),
    "the norm of a part": ({"norm": nn.BatchNorm2d(2)}, lambda m, y: m.norm(y[:, :2]), False),
    "no norm": ({}, lambda m, y: y.relu(), False),
    "the model's output": ({}, lambda m, y: y, False),
    "nobody": ({}, lambda m, y: torch.zeros(2, device=y.device), False),
    "somebody who asks for its type only": ({}, lambda m, y: y.new_zeros(2), False),
}


@pytest.mark.parametrize(("parts", "read", "normalised"), READERS.values(), ids=READERS)
def test_a_layer_is_normalised_when_norms_read_its_output_and_nothing_else_does(
    parts: dict[str, nn.Module], read: Forward, normalised: bool
) -> None:
    net = Net(lambda m, x: read(m, m.conv(x)), {"conv": conv(), **parts}).eval()
    assert layers_of(net, images())["conv"].normalised is normalised


def test_a_linear_layer_is_normalised_like_a_convolution() -> None:
    parts = {"a": nn.Linear(16, 16), "norm": nn.LayerNorm(16), "b": nn.Linear(16, 16)}
    sites = layers_of(Net(lambda m, x: m.b(m.norm(m.a(x))), parts), images())
    assert (sites["a"].normalised, sites["b"].normalised) == (True, False)


def test_a_layer_called_twice_is_normalised_when_both_outputs_are() -> None:
    parts = {"conv": conv(3, 3), "norm": nn.BatchNorm2d(3)}
    both = Net(lambda m, x: m.norm(m.conv(m.norm(m.conv(x)).relu())), parts)
    one = Net(lambda m, x: m.conv(m.norm(m.conv(x)).relu()), parts)
    assert [layers_of(net.eval(), images())["conv"].normalised for net in (both, one)] == [True, False]


def test_a_layer_whose_weight_alone_is_read_is_not_called_and_not_normalised() -> None:
    parts = {"conv": conv(), "fc": nn.Linear(16, 16), "norm": nn.BatchNorm2d(4)}
    read = Net(lambda m, x: m.norm(F.conv2d(F.linear(x, m.fc.weight), m.conv.weight)), parts).eval()
    called = Net(lambda m, x: m.norm(m.conv(m.fc(x))), parts).eval()
    for net, is_called in ((read, False), (called, True)):
        sites = layers_of(net, images())
        assert {path: site.is_called for path, site in sites.items()} == {"conv": is_called, "fc": is_called}
        assert sites["conv"].normalised is is_called


def test_an_adder_refuses_a_layer_that_is_not_called_and_says_so_in_the_plan() -> None:
    net = Net(lambda m, x: m.norm(F.conv2d(x, m.conv.weight)), {"conv": conv(), "norm": nn.BatchNorm2d(4)}).eval()
    rule = {"match": {"kind": "conv2d"}, "operator": "adder_conv2d", "on_refusal": "keep"}
    (stage,) = plan_for(net, recipe([rule])).stages
    assert [(skip.site.path, skip.reason) for skip in stage.skips if skip.cause == "refused"] == [("conv", NOT_CALLED)]


def test_a_rule_for_an_edge_takes_those_layers_and_leaves_the_others() -> None:
    first = {"match": {"kind": "conv2d", "edge": "first"}, "operator": "keep"}
    last = {"match": {"edge": "last"}, "operator": "keep"}
    others = {"match": {"kind": "conv2d"}, "operator": "adder_conv2d"}
    plan = plan_for(cnn(), recipe([first, last, others]))
    assert [step.site.path for step in plan.steps] == ["3"]
    ruled = {skip.site.path: skip.rule for skip in plan.stages[0].skips if skip.site.path in ("0", "6")}
    assert ruled == {"0": "stage 0, rule 0", "6": "stage 0, rule 1"}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name).eval()


@pytest.mark.parametrize(
    ("make", "size", "first", "last"),
    [
        (lambda: on_meta("resnet18"), 64, "conv1", "fc"),
        (lambda: on_meta("mobilenetv3_small_050"), 64, "conv_stem", "classifier"),
        (lambda: on_meta("levit_128s"), 224, "stem.conv1.linear", "head.linear"),
        (vit, 16, "patch_embed.proj", "head"),
    ],
    ids=["resnet18", "mobilenetv3", "levit", "vit"],
)
def test_stem_and_classifier_of_timms_models(make: Callable[[], nn.Module], size: int, first: str, last: str) -> None:
    found = first_and_last(make(), torch.empty(2, 3, size, size, device="meta"))
    expected_last = {last, "head_dist.linear"} if last == "head.linear" else {last}
    assert found == ({first}, expected_last)


def test_which_convolutions_of_timms_models_are_normalised() -> None:
    x = torch.empty(2, 3, 64, 64, device="meta")
    sites = layers_of(on_meta("resnet18"), x)
    assert {path for path, site in sites.items() if not site.normalised} == {"fc"}
    sites = layers_of(on_meta("mobilenetv3_small_050"), x)
    bare = {path for path, site in sites.items() if not site.normalised}
    assert {"conv_head", "classifier"} < bare
    assert all(".se.conv_" in path for path in bare - {"conv_head", "classifier"})
    assert not any(site.normalised for site in layers_of(vit(), images()).values())
