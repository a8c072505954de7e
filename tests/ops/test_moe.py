"""A mixture for every kind of MLP: whole experts where tokens are alone, a router for each layer where they mix."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.cost.count import count_operations
from reparam.ops.moe import MoeMlp, MoeMlpOptions
from reparam.ops.moe_examples import moe_examples
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.routing import MULTIPLY, SHIFT, Router, Routing
from reparam.ops.site import MlpForm
from reparam.trace.probe import probe
from reparam.train.parameters import no_decay_names
from reparam.train.routing import RoutingRecorder

EXAMPLES = {example.name: example for example in moe_examples() if example.refusal is None}
WHOLE = ["gated", "packed", "norm", "maps"]
MIXING = ["depthwise", "batch-norm"]


def mixture(name: str, **options: Any) -> tuple[MoeMlp, nn.Module, Tensor]:
    """The mixture of an example, its untouched dense MLP, an input."""
    torch.manual_seed(0)
    example = EXAMPLES[name]
    dense = example.dense().eval()
    made = MoeMlp.from_dense(copy.deepcopy(dense), example.site, MoeMlpOptions(**options))
    return made, dense, example.inputs()[0]


def force(module: nn.Module, expert: int) -> None:
    """Sends every token to one expert."""

    def route(router: Router, args: tuple[Tensor], routing: Routing) -> Routing:
        return routing._replace(expert=torch.full_like(routing.expert, expert))

    for router in module.modules():
        if isinstance(router, Router):
            router.register_forward_hook(route)


def shifted(dense: nn.Module) -> nn.Module:
    """The dense MLP with its layers' weights rounded to powers of two, in the range of each channel."""
    rounded = copy.deepcopy(dense)
    for layer in rounded.modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
            weight = layer.weight.data.flatten(1)
            power = torch.exp2(torch.round(torch.log2(weight.abs())))
            top = power.amax(dim=1, keepdim=True)
            power = torch.where(weight.abs() < top * 2.0**-15, 0.0, power.maximum(top * 2.0**-14))
            layer.weight.data = (power * weight.sign()).reshape(layer.weight.shape)
    return rounded


@pytest.mark.parametrize("name", [*WHOLE, *MIXING])
def test_every_kind_starts_where_the_dense_one_stood(name: str) -> None:
    moe, dense, x = mixture(name)
    torch.testing.assert_close(moe.eval()(x), dense(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dispatch", ["gather", "masked"])
@pytest.mark.parametrize("name", [*WHOLE, *MIXING])
def test_shifted_tokens_get_the_mlp_with_rounded_weights(name: str, dispatch: str) -> None:
    moe, dense, x = mixture(name, dispatch=dispatch)
    force(moe, SHIFT)
    torch.testing.assert_close(moe.eval()(x), shifted(dense)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_each_token_of_a_whole_expert_gets_the_output_of_its_expert(name: str) -> None:
    moe, dense, x = mixture(name)
    nn.init.normal_(moe.router.weight)
    at = 1 if moe.form.layout == "channels_first" else -1
    rows = x.movedim(at, -1)
    is_shifted = (rows @ moe.router.weight[1] > rows @ moe.router.weight[0]).unsqueeze(at)
    assert 0 < is_shifted.sum() < is_shifted.numel()
    expected = torch.where(is_shifted, shifted(dense)(x), dense(x))
    torch.testing.assert_close(moe.eval()(x), expected, rtol=1e-5, atol=1e-6)


def test_layers_of_a_mixing_mlp_are_routed_each_on_its_own() -> None:
    moe, dense, x = mixture("depthwise")
    force(moe.body.fc2, SHIFT)
    hidden = F.gelu(dense.dwconv(dense.fc1(x).transpose(1, 2).unflatten(2, (2, -1)))).flatten(2).transpose(1, 2)
    torch.testing.assert_close(moe.eval()(x), shifted(dense).fc2(hidden), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*WHOLE, *MIXING])
def test_every_dispatch_gives_the_same_output_and_gradients(name: str) -> None:
    results = []
    for dispatch in ("gather", "masked"):
        moe, _, x = mixture(name, dispatch=dispatch, router_init="normal")
        out = moe.eval()(x)
        (out * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
        results.append([out, *(p.grad for p in moe.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_grouped_layers_agree_with_gathered_ones() -> None:
    outputs = [mixture("depthwise", dispatch=way, router_init="normal") for way in ("gather", "grouped")]
    torch.testing.assert_close(*(moe.eval()(x) for moe, _, x in outputs))


@pytest.mark.parametrize("name", [*WHOLE, *MIXING])
@pytest.mark.parametrize("expert", [MULTIPLY, SHIFT])
def test_an_expert_without_tokens_gets_gradients_of_zero(name: str, expert: int) -> None:
    moe, _, x = mixture(name)
    force(moe, expert)
    moe.train()(x).square().sum().backward()
    idle = "shift" if expert == MULTIPLY else "multiply"
    gradients = [p.grad for n, p in moe.named_parameters() if idle in n.split(".")]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_the_dense_mlp_is_left_whole_where_its_layers_are_routed() -> None:
    example = EXAMPLES["depthwise"]
    dense = example.dense()
    moe = MoeMlp.from_dense(dense, example.site, MoeMlpOptions())
    assert type(dense.fc1) is nn.Linear
    assert isinstance(moe.body.fc1, RoutedLayer)
    assert moe.body.fc1.multiply.weight is dense.fc1.weight
    assert moe.body.dwconv.weight is dense.dwconv.weight


def test_a_straight_chain_keeps_the_keys_of_old_checkpoints() -> None:
    keys = set(mixture("default")[0].state_dict())
    layers = {f"shift.{i}.{key}" for i in (0, 2) for key in ("latent", "bias", "offset")}
    assert keys == {"router.weight"} | {f"multiply.{i}.{key}" for i in (0, 2) for key in ("weight", "bias")} | layers


def test_state_of_a_mixing_mlp_lies_in_its_body() -> None:
    keys = set(mixture("depthwise")[0].state_dict())
    layer = {"router.weight", "multiply.weight", "multiply.bias", "shift.latent", "shift.bias", "shift.offset"}
    assert keys == {"body.dwconv.weight", "body.dwconv.bias"} | {
        f"body.{f}.{key}" for f in ("fc1", "fc2") for key in layer
    }


class Scaled(nn.Module):
    """Takes two arguments beside its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, factor: float, *, power: int) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)) * factor**power)


@pytest.mark.parametrize("mixes_tokens", [False, True])
def test_further_arguments_reach_the_mlp(mixes_tokens: bool) -> None:
    torch.manual_seed(0)
    dense, x = Scaled(), torch.randn(2, 4, 8)
    form = MlpForm(linears=("fc1", "fc2"), mixes_tokens=mixes_tokens)
    site = EXAMPLES["gated"].site.model_copy(update={"mlp": form})
    moe = MoeMlp.from_dense(copy.deepcopy(dense), site, MoeMlpOptions()).eval()
    torch.testing.assert_close(moe(x, 3.0, power=2), dense(x, 3.0, power=2))


def test_every_router_is_recorded_spared_and_counted() -> None:
    moe, _, x = mixture("depthwise", router_init="normal")
    routers = {"0.body.fc1.router", "0.body.fc2.router"}
    model = nn.Sequential(moe).train()
    with RoutingRecorder(model) as recorder:
        model(x)
        assert recorder.balance_loss() is not None
        assert set(recorder.shares()) == routers
    assert {f"{name}.weight" for name in routers} <= no_decay_names(model)
    trace = probe(model, x)
    tokens, layer = 8, 8 * 16
    router_products = tokens * 2 * (8 + 16)
    between = tokens * 16 * (9 + 3)  # the depthwise convolution and the GELU
    all_shifted, _ = count_operations(model, trace, mult_share=dict.fromkeys(routers, 0.0))
    assert all_shifted.total("mul") == router_products + between
    assert all_shifted.total("shift") == tokens * 2 * layer
    first_multiplied, _ = count_operations(
        model, trace, mult_share={"0.body.fc1.router": 1.0, "0.body.fc2.router": 0.0}
    )
    assert first_multiplied.total("mul") == router_products + between + tokens * layer


def test_operations_of_maps_are_counted_for_each_place() -> None:
    moe, _, x = mixture("maps")
    count = moe.op_count(tuple(x.shape), mult_share=0.25)
    tokens, layer = 8, 8 * 16
    assert count.total("mul") == tokens * 2 * 8 + 2 * 2 * layer
    assert count.total("shift") == 6 * 2 * layer
    assert count.total("add") == count.total("mul") + count.total("shift") + tokens * 16


def test_the_plan_says_where_each_layer_has_a_router() -> None:
    site = EXAMPLES["depthwise"].site
    assert MoeMlp.remark(site, MoeMlpOptions()) == (
        "one router for each of its 2 layers; counted with 40% of tokens multiplied: modelled"
    )
