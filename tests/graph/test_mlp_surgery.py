"""MLPs written out in a forward move into modules of their own; the move alone changes no bit."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.errors import PlanError
from reparam.graph.mlp_install import _move
from reparam.graph.mlp_surgery import open_mlps
from reparam.ops.moe import MoeMlp
from reparam.trace.probe import probe
from tests.pico import ATTENTION, HEADS, MLP, TokenNet, convert, images, plan_for, recipe, site_of, token_net

WAY: dict[str, Callable[["Block", Tensor], Tensor]] = {
    "functional": lambda m, x: x + F.dropout(m.fc2(F.gelu(m.fc1(m.norm(x)))), 0.2, m.training),
    "inner dropout": lambda m, x: x + m.fc2(F.dropout(F.gelu(m.fc1(x)), 0.2, m.training)),
    "modules": lambda m, x: x + m.drop(m.fc2(m.drop(m.act(m.fc1(m.norm(x)))))),
    "post-norm": lambda m, x: m.norm(x + m.fc2(m.inner(m.act(m.fc1(x))))),
    "gated": lambda m, x: x + m.fc2(F.silu(m.fc1(x)) * m.fc3(x)),
    "sizes": lambda m, x: x + m.fc2(F.gelu(m.fc1(x)).view(x.shape[0], x.shape[1], -1)),
    "identity": lambda m, x: x + m.fc2(m.nothing(m.act(m.nothing(m.fc1(x))))),
    "weights": lambda m, x: x + F.linear(F.gelu(F.linear(x, m.fc1.weight, m.fc1.bias)), m.fc2.weight, m.fc2.bias),
    "container": lambda m, x: x + m.list[1](F.gelu(m.list[0](x))),
    "two": lambda m, x: x + m.fc2(F.gelu(m.fc1(x))) + m.list[1](m.act(m.list[0](m.act(x)))),
}
LAYERS = {"gated": {0: ("fc1", "fc3", "fc2")}, "container": {0: ("list.0", "list.1")}}
LAYERS["two"] = {0: ("fc1", "fc2"), 1: ("list.0", "list.1")}


class Block(nn.Module):
    """A residual branch, or several, written out in one of the ways above."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        used = {"fc1": nn.Linear(8, 8), "fc2": nn.Linear(8, 8)} if way != "container" else {}
        used |= {"fc3": nn.Linear(8, 8)} if way == "gated" else {}
        used |= {"norm": nn.LayerNorm(8)} if way in {"functional", "modules", "post-norm"} else {}
        used |= {"inner": nn.LayerNorm(8)} if way == "post-norm" else {}
        used |= {"list": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])} if way in {"container", "two"} else {}
        for name, module in used.items():
            self.add_module(name, module)
        self.act, self.drop, self.nothing = nn.GELU(), nn.Dropout(0.3), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return WAY[self.way](self, x)


def net(way: str) -> TokenNet:
    return token_net(Block(way))


def moved(way: str) -> tuple[Block, Block, Tensor]:
    """A block, its copy with the MLPs moved out, and tokens."""
    model = net(way)
    block = copy.deepcopy(model.attn)
    opened = open_mlps(block, probe(model, images()).calls_of("attn"), "attn", LAYERS.get(way, {0: ("fc1", "fc2")}))
    _move(block, opened)
    return model.attn, block, torch.randn(3, 16, 8)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", WAY)
def test_the_move_alone_changes_no_bit(way: str, training: bool) -> None:
    block, changed, x = moved(way)
    results = []
    for module in (block.train(training), changed.train(training)):
        torch.manual_seed(0)
        results.append(module(x))
    assert torch.equal(*results)
    assert changed.mlp.training is training


@pytest.mark.parametrize("way", WAY)
def test_the_owner_gives_its_layers_away(way: str) -> None:
    block, changed, _ = moved(way)
    before = {id(p) for p in block.parameters()}
    assert len(list(changed.parameters())) == len(before)
    assert not {"fc1", "fc2", "fc3", "inner"} & {name for name, _ in changed.named_children()}
    assert ("drop" in dict(changed.named_children())) is True  # other lines may use it, and it holds no weights


@pytest.mark.parametrize("way", WAY)
def test_a_model_with_inline_mlps_converts_trains_and_copies(way: str) -> None:
    model, x = net(way), images()
    expected = model(x)
    converted = convert(copy.deepcopy(model), recipe([MLP]))
    mixtures = [module for module in converted.modules() if isinstance(module, MoeMlp)]
    assert len(mixtures) == len(LAYERS.get(way, {0: ()}))
    torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(copy.deepcopy(converted)(x), converted(x))
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), converted(x))
    converted.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in converted.parameters())
    assert not plan_for(converted, recipe([{**MLP, "optional": True}]), allow_partial=True).steps


class WithAttention(nn.Module):
    """Attention and an MLP, both written out in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.fc1, self.fc2 = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(x)))


def test_layers_of_an_inline_mlp_are_within_it_though_its_owner_holds_attention() -> None:
    plan = plan_for(token_net(WithAttention()), recipe([{**MLP, "match": {"path": "attn"}}]), allow_partial=True)
    within = {name: site_of(plan, f"attn.{name}").within for name in ("qkv", "proj", "fc1", "fc2")}
    assert within == {"qkv": "attention", "proj": "attention", "fc1": "mlp", "fc2": "mlp"}
    inside = {skip.site.path for skip in plan.stages[0].skips if skip.cause == "inside"}
    assert inside == {"attn.fc1", "attn.fc2"}


@pytest.mark.parametrize("stages", [[[ATTENTION, MLP]], [[ATTENTION], [MLP]], [[MLP], [ATTENTION]]], ids=str)
def test_attention_and_mlp_of_one_forward_are_converted_together_or_one_by_one(stages: list[list[dict]]) -> None:
    converted = convert(token_net(WithAttention()), recipe(*stages))
    assert isinstance(converted.attn.mlp, MoeMlp)
    assert converted.attn.core.name == "binary_linear_attention"
    converted.train()(images()).square().sum().backward()
    assert all(p.grad is not None for p in converted.parameters() if p.requires_grad)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_encoder_layer_is_converted(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, norm_first=norm_first)
    model = token_net(layer)
    x = images()
    expected = model(x)
    converted = convert(model, recipe([MLP]))
    assert isinstance(converted.attn.mlp, MoeMlp)
    torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(converted(x), converted(x))
    converted.train()(x).square().sum().backward()


class Refused(nn.Module):
    """An MLP that cannot be told from the rest of its forward."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.fc1, self.fc2, self.norm = way, nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.ones(8))
        if way == "registered twice":
            self.other = self.fc1

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "own parameter":
            return x + self.fc2(F.gelu(self.fc1(x)) * self.scale)
        if self.way == "shared norm":
            return self.norm(x + self.fc2(F.gelu(self.norm(self.fc1(x)))))
        return x + self.fc2(F.gelu(self.fc1(x)))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("own parameter", 'its MLP reads "scale", which is the owner\'s own'),
        ("shared norm", '"norm" serves more than its MLP'),
        ("registered twice", '"fc1" serves more than its MLP'),
    ],
)
def test_an_mlp_that_cannot_be_moved_is_refused_with_the_reason(way: str, reason: str) -> None:
    with pytest.raises(PlanError) as raised:
        plan_for(token_net(Refused(way)), recipe([MLP]))
    assert reason in str(raised.value)


def test_a_failed_rewrite_puts_the_layers_back_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net("modules")
    plan = plan_for(model, recipe([MLP]))
    names, own_class = list(model.state_dict()), type(model.attn)

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("reparam.graph.mlp_install.check_operator", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        convert(model, recipe([MLP]))
    assert list(model.state_dict()) == names
    assert type(model.attn) is own_class
    assert plan.fingerprint == plan_for(model, recipe([MLP])).fingerprint


class Padded(nn.Module):
    """torch's encoder, which packs padded tokens for layers on their fast path."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # the dense encoder's own
def test_torchs_encoder_runs_with_converted_layers_and_padding() -> None:
    model, x = token_net(Padded()), images()
    with torch.no_grad():
        expected = model(x)
        converted = convert(model, recipe([MLP]))
        torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-5)
