"""Linear and convolution layers: all are listed, with their shapes, sharing and what stops an operator."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.ops.site import Site
from reparam.trace.probe import probe
from tests.pico import FULL, LINEAR, cnn, convert, images, inline_net, plan_for, recipe, vit


def sites_of(model: nn.Module, x: Tensor, kind: str = "linear") -> dict[str, Site]:
    return {site.path: site for site in find_sites(Scene(model, probe(model, x))) if site.kind == kind}


@pytest.mark.parametrize(("model", "layer"), [(vit(), nn.Linear), (inline_net(), nn.Linear), (cnn(), nn.Conv2d)])
def test_every_layer_is_a_site_in_the_order_of_the_module_tree(model: nn.Module, layer: type[nn.Module]) -> None:
    kind = "linear" if layer is nn.Linear else "conv2d"
    wanted = [path for path, module in model.named_modules() if isinstance(module, layer)]
    assert list(sites_of(model, images(), kind)) == wanted
    assert wanted


def test_shapes_are_those_of_the_call_and_a_grouped_convolution_is_a_convolution() -> None:
    sites = sites_of(cnn(), images(), "conv2d")
    assert (sites["3"].input_shape, sites["3"].output_shape, sites["3"].calls) == ((2, 4, 16, 16), (2, 4, 14, 14), 1)
    head = sites_of(vit(), images())["blocks.1.mlp.fc1"]
    assert (head.input_shape, head.output_shape) == ((2, 17, 16), (2, 17, 64))


class Tied(nn.Module):
    """A layer that shares its weight with an embedding, and two that share one with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.free = nn.Linear(4, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.free(self.second(self.first(self.embed(x)))))


def test_a_tied_layer_takes_part_in_the_run_and_names_its_partner() -> None:
    sites = sites_of(Tied(), torch.zeros(2, 5, dtype=torch.int64))
    assert {path: site.shared_with for path, site in sites.items()} == {
        "first": ("second",),
        "second": ("first",),
        "free": (),
        "head": ("embed",),
    }
    assert [site.refusal for site in sites.values()] == [None] * 4
    assert sites["head"].output_shape == (2, 5, 8)
    assert [site.calls for site in sites.values()] == [1, 1, 1, 1]


def test_tied_layers_stay_dense_and_tied_and_the_free_one_converts() -> None:
    model, x = Tied(), torch.zeros(2, 5, dtype=torch.int64)
    plan = plan_for(model, recipe([LINEAR]), x, allow_partial=True)
    assert [step.site.path for step in plan.steps] == ["free"]
    reasons = {skip.site.path: skip.reason for skip in plan.stages[0].skips}
    assert reasons["head"] == 'its weight is shared with "embed", which would stay dense'
    convert(model, recipe([LINEAR]), x, allow_partial=True)
    assert model.head.weight is model.embed.weight
    assert model.second.weight is model.first.weight


class Aliased(nn.Module):
    """One layer object under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def test_one_layer_under_two_names_is_one_site_and_stays_one_layer() -> None:
    model, x = Aliased(), torch.randn(2, 4)
    sites = sites_of(model, x)
    assert list(sites) == ["first"]
    assert (sites["first"].calls, sites["first"].shared_with) == (2, ())
    convert(model, recipe([LINEAR]), x)
    assert model.first is model.second
    assert type(model.first).__name__ == "ShiftLinear"


class Reads(nn.Module):
    """Reads the weights of its layers instead of calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.proper, self.transposed, self.unused = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.proper.weight) @ self.transposed.weight.t()


def test_a_layer_whose_weight_is_read_is_a_site_if_the_reader_is_a_linear_operation() -> None:
    sites = sites_of(Reads(), torch.zeros(2, 4))
    assert {path: site.refusal for path, site in sites.items()} == {
        "proper": None,
        "transposed": "its weight is read by 't', not by a linear operation",
        "unused": "it took no part in the run on the example input",
    }


def test_a_converted_layer_whose_weight_is_read_gives_the_rounded_weights() -> None:
    model, x = Reads(), torch.randn(2, 4)
    proper = {**LINEAR, "match": {"path": "proper"}}
    dense = model.proper.weight.detach().clone()
    convert(model, recipe([proper]), x)
    exponents = torch.log2(model.proper.weight.abs())
    assert torch.equal(exponents, exponents.round())
    assert not torch.equal(model.proper.weight, dense)
    assert torch.equal(model(x), x @ model.proper.weight.t() @ model.transposed.weight.t())


def test_a_weight_that_is_computed_is_refused() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.ReLU())
    assert sites_of(model, torch.zeros(2, 4))["0"].refusal == "its weight is computed from other parameters"


def test_converted_layers_and_what_lies_inside_operators_are_no_sites() -> None:
    model = convert(vit(), FULL)
    left = [site.path for site in find_sites(Scene(model, probe(model, images())))]
    assert left == ["patch_embed.proj", "head"]


def test_a_layer_is_told_the_innermost_block_it_is_a_part_of() -> None:
    sites = sites_of(inline_net(), images())
    assert {path: site.within for path, site in sites.items() if not path.startswith("blocks.1")} == {
        "blocks.0.to_q": "attention",
        "blocks.0.to_k": "attention",
        "blocks.0.to_v": "attention",
        "blocks.0.mlp.0": "mlp",
        "blocks.0.mlp.2": "mlp",
        "head": None,
    }


def test_a_layer_is_still_within_its_attention_when_that_has_been_converted() -> None:
    plan = plan_for(vit(), FULL)
    second = {step.site.path: step.site.within for step in plan.stages[1].steps if step.site.kind == "linear"}
    assert second == {f"blocks.{i}.attn.{layer}": "attention" for i in (0, 1) for layer in ("qkv", "proj")}


def test_shifted_layers_of_torchs_encoder_layer_count_in_its_fast_path_too() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    dense = layer(x).detach()
    rules = recipe([{**LINEAR, "match": {"path": "linear*"}}])
    convert(layer, rules, x)
    with torch.no_grad():
        fast = layer(x)
    torch.testing.assert_close(fast, layer(x).detach())
    assert (fast - dense).abs().max() > 1e-4
