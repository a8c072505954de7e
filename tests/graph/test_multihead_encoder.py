"""torch's own encoder with converted attention: no fast path passes by, and it copies, pickles, exports, compiles."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.graph.multihead import FLAGS, HEADS, WIDTH, binary_core, opened_in, sequences
from tests.pico import LINEAR, convert, recipe


@pytest.fixture(autouse=True)
def slow_path() -> Any:
    """torch's fast path gives other bits than its own documented operations."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def encoder(*, norm_first: bool = False) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()


def convert_encoder(model: nn.TransformerEncoder, *args: Tensor) -> None:
    for number in range(2):
        path = f"layers.{number}.self_attn"
        opened_in(model, *args, path=path, core=binary_core(model, *args, path=path))


class Padded(nn.Module):
    """An encoder that is told which tokens are padding, which makes torch pack them into nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder()

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        out: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return out


@torch.no_grad()
def test_torchs_fast_path_does_not_pass_by_the_new_core() -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    model, x = encoder(), sequences()[0]
    original = model(x)
    convert_encoder(model, x)
    fast = model(x)
    torch.backends.mha.set_fastpath_enabled(False)
    assert torch.equal(fast, model(x))
    assert (fast - original).abs().max() > 1e-2


@torch.no_grad()
def test_nested_tensors_of_padded_batches_do_not_reach_the_new_core() -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    model, args = Padded(), (sequences()[0], FLAGS)
    model.eval()
    for number in range(2):
        path = f"encoder.layers.{number}.self_attn"
        opened_in(model, *args, path=path, core=binary_core(model, *args, path=path))
    assert model(*args).shape == (3, 5, 8)
    assert torch.isfinite(model(*args)).all()


@pytest.fixture
def converted() -> nn.TransformerEncoder:
    model = encoder(norm_first=True)
    convert_encoder(model, sequences()[0])
    return model


def test_a_converted_encoder_copies_pickles_and_reloads(converted: nn.TransformerEncoder) -> None:
    x = sequences()[0]
    expected = converted(x)
    buffer = io.BytesIO()
    torch.save(converted, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
    twin = copy.deepcopy(converted)
    other = encoder(norm_first=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    convert_encoder(other, x)
    other.load_state_dict(converted.state_dict(), strict=True)
    assert torch.equal(twin(x), expected)
    assert torch.equal(other(x), expected)


def test_every_parameter_of_a_converted_encoder_gets_a_gradient(converted: nn.TransformerEncoder) -> None:
    converted.train()(sequences()[0]).square().mean().backward()
    assert not [n for n, p in converted.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]


def test_the_state_dict_has_the_documented_names(converted: nn.TransformerEncoder) -> None:
    names = [n for n in converted.state_dict() if n.startswith("layers.0.self_attn.")]
    assert [n.removeprefix("layers.0.self_attn.") for n in names] == [
        "in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias", "core.threshold_q", "core.threshold_k",
    ]  # fmt: skip


def test_the_exported_encoder_has_no_softmax(converted: nn.TransformerEncoder) -> None:
    program = torch.export.export(converted, (sequences()[0],), strict=False)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in names if "softmax" in name or "scaled_dot_product" in name]


@pytest.mark.slow
def test_a_converted_encoder_compiles_as_one_graph(converted: nn.TransformerEncoder) -> None:
    x = sequences()[0]
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), converted(x))


@pytest.mark.parametrize(
    "rule",
    [
        {**LINEAR, "match": {"path": "linear*"}, "options": {"activation_bits": 8}},
        {"match": {"path": "linear*"}, "operator": "adder_linear", "options": {"norm": "insert"}},
    ],
    ids=["fixed-point inputs", "adders"],
)
@torch.no_grad()
def test_torchs_fast_path_does_not_multiply_by_the_weights_of_other_operators(rule: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 5, 8)
    convert(layer, recipe([rule]), x)
    torch.backends.mha.set_fastpath_enabled(True)
    found = layer(x)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.testing.assert_close(found, layer(x))  # attention itself, which stays, may still round on its fast path
