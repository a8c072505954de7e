"""Linear and convolution layers: all are listed, with their shapes, sharing and what stops an operator."""

from collections.abc import Callable

import pytest
import timm.layers
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.graph.finders.leaves import why_no_leaf
from reparam.ops.site import Site
from reparam.recipe.schema import Kind
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
    assert {path: (site.refusal, site.idle) for path, site in sites.items()} == {
        "proper": (None, False),
        "transposed": ("its weight is read by 't', not by a linear operation", False),
        "unused": (None, True),
    }
    assert (sites["proper"].input_shape, sites["unused"].input_shape) == ((2, 4), ())


def test_a_layer_that_took_no_part_is_kept_without_a_fault() -> None:
    rules = recipe([{**LINEAR, "match": {"path": "re:proper|unused"}}])
    (stage,) = plan_for(Reads(), rules, torch.zeros(2, 4)).stages
    assert [step.site.path for step in stage.steps] == ["proper"]
    assert ("unused", "idle") in {(skip.site.path, skip.cause) for skip in stage.skips}


def test_a_converted_layer_whose_weight_is_read_gives_the_rounded_weights() -> None:
    model, x = Reads(), torch.randn(2, 4)
    proper = {**LINEAR, "match": {"path": "proper"}}
    dense = model.proper.weight.detach().clone()
    convert(model, recipe([proper]), x)
    exponents = torch.log2(model.proper.weight.abs())
    assert torch.equal(exponents, exponents.round())
    assert not torch.equal(model.proper.weight, dense)
    assert torch.equal(model(x), x @ model.proper.weight.t() @ model.transposed.weight.t())


class Ties(nn.Module):
    """Two layers; the second takes over the weight of the first in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.late = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.late.weight = self.first.weight
        return self.late(self.first(x))


class Generated(nn.Linear):
    """The weight follows from the input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, input.t() @ input)


class Passes(nn.Linear):
    """A layer that was switched off."""

    def forward(self, input: Tensor) -> Tensor:
        return input + 1


@pytest.mark.parametrize(
    ("make", "path", "reason"),
    [
        (
            lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.ReLU()),
            "0",
            'its weight is computed from "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"',
        ),
        (
            lambda: nn.Sequential(spectral_norm(nn.Linear(4, 4))),
            "0",
            'its weight is computed from "0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v", '
            '"0.parametrizations.weight.original"',
        ),
        (lambda: Ties(), "late", 'its forward reads "first.weight", not a weight of its own'),
        (lambda: nn.Sequential(Generated(4, 4)), "0", "its weight is computed from the model's input"),
        (lambda: nn.Sequential(Passes(4, 4)), "0", "its forward runs no linear operation"),
    ],
    ids=["weight norm", "spectral norm", "tied in forward", "from the input", "no product"],
)
def test_a_layer_that_does_not_multiply_by_its_own_weight_is_refused(
    make: Callable[[], nn.Module], path: str, reason: str
) -> None:
    model, x = make(), torch.zeros(4, 4)
    assert sites_of(model, x)[path].refusal == reason
    kept = plan_for(model, recipe([{**LINEAR, "match": {"path": path}, "on_refusal": "keep"}]), x)
    assert [(skip.cause, skip.reason) for skip in kept.stages[0].skips if skip.site.path == path] == [
        ("refused", reason)
    ]


class Twice(nn.Module):
    """One layer, called twice with different numbers of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x)[:, :2])


def test_a_layer_that_is_called_twice_is_one_site_and_converts() -> None:
    model, x = Twice(), torch.randn(2, 5, 4)
    (site,) = sites_of(model, x).values()
    assert (site.calls, site.refusal, site.input_shape) == (2, None, (2, 5, 4))
    assert [step.site.path for step in plan_for(model, recipe([LINEAR]), x).steps] == ["fc"]


class Lora(nn.Linear):
    """A frozen layer with a product of low rank beside it."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.down, self.up = nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.up(self.down(input))


class TrainsNoisily(nn.Linear):
    """Plain in eval only."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, 0.5) if self.training else input)


@pytest.mark.parametrize(
    ("layer", "converts"),
    [
        (NonDynamicallyQuantizableLinear(4, 4), True),
        (timm.layers.Linear(4, 4), True),
        (Lora(), False),
        (TrainsNoisily(4, 4), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_converts_when_its_forward_is_the_linear_operation_and_no_more(
    layer: nn.Linear, converts: bool
) -> None:
    model, x = nn.Sequential(layer), torch.randn(2, 4)
    assert sites_of(model, x)["0"].refusal is None
    (stage,) = plan_for(model, recipe([{**LINEAR, "match": {"path": "0"}, "on_refusal": "keep"}]), x).stages
    assert [step.site.path for step in stage.steps] == ["0"] * converts
    assert [skip.reason for skip in stage.skips if skip.cause == "refused"] == [
        f"{type(layer).__module__}.{type(layer).__qualname__} is not torch.nn.Linear; its own forward would be lost"
    ] * (not converts)


def test_layers_inside_a_subclass_are_sites_of_their_own() -> None:
    assert list(sites_of(nn.Sequential(Lora()), torch.zeros(2, 4))) == ["0", "0.down", "0.up"]


@pytest.mark.parametrize(
    "layer",
    [StdConv2d(3, 4, 3), ScaledStdConv2d(3, 4, 3), Conv2dSame(3, 4, 3, stride=2)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_convolution_that_prepares_its_weight_or_its_input_is_a_site_with_the_shapes_of_its_call(
    layer: nn.Conv2d,
) -> None:
    (site,) = sites_of(nn.Sequential(layer), images(), "conv2d").values()
    assert (site.refusal, site.idle, site.calls, site.input_shape) == (None, False, 1, (2, 3, 16, 16))
    assert site.output_shape == layer(images()).shape


def test_the_output_layer_of_fused_attention_is_a_site_that_is_no_linear_operation() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.zeros(2, 5, 8)
    site = {s.path: s for s in find_sites(Scene(model, probe(model, (x, x, x)))) if s.kind == "linear"}["out_proj"]
    assert site.refusal == "its weight is read by 'multi_head_attention_forward', not by a linear operation"


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        ("blocks.0.norm1", "linear", "its class is LayerNorm, not torch.nn.Linear"),
        ("blocks.0.norm1", "conv2d", "its class is LayerNorm, not torch.nn.Conv2d"),
        ("blocks.0.attn", "linear", 'its class is Attention; "blocks.0.attn.qkv", "blocks.0.attn.proj" inside it are'),
        ("patch_embed", "conv2d", 'its class is PatchEmbed; "patch_embed.proj" inside it is one'),
        ("head", "linear", None),
        ("head", "conv2d", "its class is Linear, not torch.nn.Conv2d"),
    ],
)
def test_what_is_no_layer_says_why(path: str, kind: Kind, reason: str | None) -> None:
    model = vit()
    assert why_no_leaf(Scene(model, probe(model, images())), path, kind=kind) == reason


class OwnWeight(nn.Module):
    """A linear operation without a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.table)


def test_a_module_that_multiplies_by_a_parameter_of_its_own_is_told_from_a_layer() -> None:
    model = nn.Sequential(OwnWeight())
    reason = "its class is OwnWeight, which runs 'linear' on a weight of its own; wanted torch.nn.Linear"
    assert why_no_leaf(Scene(model, probe(model, torch.zeros(2, 4))), "0", kind="linear") == reason


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
