"""cuda: packed weights to the bit, values as in bf16, mixtures on sorted tokens; without a GPU by the reference."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam.errors import BackendError
from reparam.kernels import packed_reference
from reparam.lowering.base import LoweringSettings
from reparam.lowering.bfloat16_experts import GroupedBfloat16Linear
from reparam.lowering.cuda import Cuda
from reparam.lowering.cuda_fp8 import CudaFloat8
from reparam.lowering.grouped_experts import GroupedExperts
from reparam.lowering.lower import lowered_copy
from reparam.lowering.packed_linear import PackedShiftLinear
from reparam.lowering.packed_weight import packed_weight
from reparam.ops.base import Example, Operator
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from tests.kernels.test_adder import needs_cuda
from tests.lowering.operators import ACCEPTED, made
from tests.pico import images, vit


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CPU stand in for a GPU: there the kernels' reference runs."""
    for backend in (Cuda, CudaFloat8):
        monkeypatch.setattr(backend, "refuse", lambda self, device: None)


def linear(weight: Tensor, **options: Any) -> ShiftLinear:
    return ShiftLinear(weight, torch.randn(len(weight)), ShiftOptions(**options)).eval()


def lowered(module: nn.Module, backend: str = "cuda") -> nn.Module:
    return lowered_copy(module, backend, LoweringSettings())[0]


def refusal_of(module: nn.Module, backend: str) -> str | None:
    try:
        lowered(module, backend)
    except BackendError as refusal:
        return str(refusal)
    return None


def unpacked(layer: ShiftLinear, bits: int) -> Tensor:
    packed = packed_weight(layer)
    assert packed is not None
    assert packed.bits == bits
    return packed_reference.weight(packed.words, packed.scale, layer.in_features, bits).float()


@given(
    outputs=st.integers(1, 5), inputs=st.integers(1, 140), bits=st.integers(2, 8), spread=st.integers(0, 60),
    middle=st.integers(-60, 60), zero_code=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_packed_weights_are_the_layers_to_the_bit(
    outputs: int, inputs: int, bits: int, spread: int, middle: int, zero_code: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(outputs, inputs) * torch.exp2(middle - torch.randint(0, spread + 1, (outputs, inputs)).float())
    weight[:, 0], weight[0] = 0.0, weight[0] * (seed % 2)  # a zero in each channel, sometimes a channel of zeros
    layer = linear(weight, bits=bits, zero_code=zero_code)
    packed = packed_weight(layer)
    assert packed is not None
    assert packed.bits == 4 or bits > 3
    found = packed_reference.weight(packed.words, packed.scale, inputs, packed.bits)
    assert torch.equal(found.float(), layer.weight)


@pytest.mark.parametrize("offset", [-110, -20, 0, 100, 126])
def test_every_value_of_4_bits_is_packed_at_every_offset(offset: int) -> None:
    row = torch.cat([torch.exp2(torch.arange(-6, 1).float()), torch.zeros(1)])
    layer = linear(torch.cat([row, -row])[None] * 2.0**offset, bits=4)
    assert layer.weight.unique().numel() == 15
    assert torch.equal(unpacked(layer, 4), layer.weight)


@pytest.mark.parametrize(("options", "bits"), [({"bits": 4, "zero_code": False}, 8), ({"bits": 5}, 8)])
def test_weights_of_more_than_seven_powers_take_a_byte(options: dict[str, Any], bits: int) -> None:
    layer = linear(torch.exp2(-torch.arange(8.0))[None].repeat(2, 1), **options)
    assert torch.equal(unpacked(layer, bits), layer.weight)


def test_a_wide_layer_whose_channels_use_few_powers_takes_half_a_byte() -> None:
    layer = linear(torch.tensor([[1.0, 2.0**-6, 0.0], [2.0**-8, 2.0**-14, 2.0**-10]]), bits=5, per_channel_offset=False)
    assert torch.equal(unpacked(layer, 4), layer.weight)


@pytest.mark.parametrize("options", [{"bits": 4, "terms": 2}, {"bits": 8, "zero_code": False}])
def test_what_no_code_holds_stays_a_bfloat16_weight(anywhere: None, options: dict[str, Any]) -> None:
    weight = torch.tensor([[1.0, 0.75, 0.0]]) * torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0**-120, 1.0]])
    layer = linear(weight if "terms" in options else weight * 2.0**126, **options)
    form, layers = lowered_copy(nn.Sequential(layer), "cuda", LoweringSettings())
    assert packed_weight(layer) is None
    assert "exact bfloat16 weights" in layers[0].form
    assert torch.equal(form[0].weight.float(), layer.weight)  # type: ignore[index,operator,union-attr]


@pytest.mark.parametrize(("bits", "share"), [(4, 0.25), (5, 0.5)])
def test_weights_take_a_quarter_or_half_of_the_bytes_of_bfloat16(anywhere: None, bits: int, share: float) -> None:
    layer = linear(torch.randn(24, 192), bits=bits)
    form = lowered(layer)
    assert isinstance(form, PackedShiftLinear)
    assert form.words.nbytes == share * 2 * 24 * 192
    assert not list(form.activation.parameters())
    assert sum(tensor.nbytes for tensor in form.state_dict().values()) == form.words.nbytes + 2 * 2 * 24


@pytest.mark.parametrize(("cls", "example"), ACCEPTED)
def test_every_operator_gives_what_bf16_gives_or_is_refused_as_there(
    anywhere: None, cls: type[Operator], example: Example
) -> None:
    operator, inputs = made(cls, example), example.inputs()
    refusal = refusal_of(operator, "bf16")
    assert refusal_of(operator, "cuda") == refusal
    if refusal:
        return
    out, wanted = lowered(operator)(*inputs), lowered(operator, "bf16")(*inputs)
    assert (out.shape, out.dtype) == (wanted.shape, torch.float32)
    assert (out - wanted).norm() <= 0.02 * wanted.norm()


def test_a_layer_rounds_its_sum_once(anywhere: None) -> None:
    torch.manual_seed(0)
    layer, x = linear(torch.randn(16, 100), bits=4), torch.randn(5, 100).to(torch.bfloat16)
    bias = layer.bias.to(torch.bfloat16).double()  # type: ignore[union-attr]
    wanted = x.double() @ layer.weight.double().T + bias
    assert torch.equal(lowered(layer)(x.float()), wanted.float().to(torch.bfloat16).float())


def test_the_rounded_weight_can_still_be_read_off_a_layer(anywhere: None) -> None:
    layer = linear(torch.randn(6, 37), bits=4)
    assert torch.equal(lowered(layer).weight.float(), layer.weight)  # type: ignore[operator,union-attr]


class Borrows(nn.Module):
    """Multiplies by its layer's weight itself, as BEiT does."""

    def __init__(self, layer: ShiftLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)


@pytest.mark.parametrize("backend", ["cuda", "cuda-fp8"])
def test_a_model_that_multiplies_by_a_layers_weight_itself_gets_it(anywhere: None, backend: str) -> None:
    model, x = Borrows(linear(torch.randn(16, 32), bits=4)), torch.randn(3, 32)
    out = lowered(model, backend)(x)
    assert torch.equal(out, lowered(model, "bf16")(x))


def converted(recipe: str, *overrides: str) -> nn.Module:
    model = reparam.convert(vit(), recipe, example_input=images(), weights="none", overrides=overrides).model
    for name, parameter in model.named_parameters():
        if "router" in name:
            nn.init.normal_(parameter)  # from zero, every token would be multiplied
        elif ".shift." in name and name.endswith("bias"):
            nn.init.normal_(parameter)  # it starts as the multiply expert's
    return model


@pytest.fixture(scope="module")
def mixture() -> nn.Module:
    return converted("shiftaddvit")


@pytest.mark.parametrize(("bits", "packed"), [(4, 4), (5, 8)])
def test_a_model_of_shift_layers_is_near_its_own_logits(anywhere: None, bits: int, packed: int) -> None:
    model = converted("shift-ptq", f"stage.0.rule.3.bits={bits}")
    lowering = reparam.lower(model, "cuda")
    out, wanted = lowering.model(images(8)), model(images(8))
    assert out.dtype == torch.float32
    assert (out - wanted).norm() < 0.05 * wanted.norm()
    assert {layer.form for layer in lowering.layers} == {f"bfloat16 product of {packed}-bit weights"}


@pytest.mark.parametrize("is_grouped", [True, False])
def test_a_mixture_sends_tokens_where_its_router_does(anywhere: None, mixture: nn.Module, is_grouped: bool) -> None:
    form = reparam.lower(mixture, "cuda").model
    layers = [module for module in form.modules() if isinstance(module, GroupedBfloat16Linear)]
    assert sum(isinstance(module, GroupedExperts) for module in form.modules()) == 2
    assert all(layer.is_grouped for layer in layers)
    for layer in layers:
        layer.is_grouped = is_grouped
    out, wanted = form(images(8)), mixture(images(8))
    assert (out - wanted).norm() < 0.05 * wanted.norm()
    for module in form.modules():
        if isinstance(module, GroupedExperts):
            module.router.weight.neg_()
    assert (form(images(8)) - wanted).norm() > 2 * (out - wanted).norm()


@pytest.mark.slow
def test_compiled_it_is_one_graph_with_the_same_values(anywhere: None, mixture: nn.Module) -> None:
    form = reparam.lower(mixture, "cuda").model
    compiled = torch.compile(form, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), form(images()), rtol=0.02, atol=0.02)


def test_without_a_gpu_it_is_refused_with_the_backends_that_run_there() -> None:
    with pytest.raises(BackendError) as found:
        lowered(linear(torch.randn(2, 2)))
    assert str(found.value) == (
        'backend "cuda" runs on a CUDA device, and the model is on cpu; there, these do: bf16, float32, int8'
    )


@pytest.mark.parametrize(
    ("capability", "has_triton", "reason"),
    [((8, 0), True, None), ((7, 5), True, "this GPU has 7.5"), ((9, 0), False, "wants Triton")],
)
def test_a_gpu_without_bfloat16_or_triton_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has_triton: bool, reason: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if has_triton else None)
    found = Cuda(LoweringSettings()).refuse(torch.device("cuda", 0))
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the debug mode and of the compiler
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("recipe", ["shift-ptq", "shiftaddvit"])
def test_on_a_gpu_a_model_is_what_the_reference_gives_and_never_waits(recipe: str, batch: int) -> None:
    model, x = converted(recipe).cuda(), images(batch).cuda()
    form, wanted = reparam.lower(model, "cuda").model, model(x)
    form(x)  # the first call compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = form(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (out - wanted).norm() < 0.05 * wanted.norm()
    compiled = torch.compile(form, fullgraph=True, mode="reduce-overhead")
    compiled(x)
    assert (compiled(x) - wanted).norm() < 0.05 * wanted.norm()
