"""cuda-fp8: exact weights, inputs rounded to float8 on power-of-two steps, and layers that stay in bfloat16."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.lowering.base import LoweringSettings
from reparam.lowering.cuda_fp8 import CudaFloat8
from reparam.lowering.float8_linear import Float8ShiftLinear, float8_linear
from reparam.lowering.lower import lowered_copy
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from tests.kernels.test_adder import needs_cuda
from tests.pico import images, vit


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a CPU stand in for a GPU, where torch has the same product there: 2.11 has not."""
    if not cpu_has_product():
        pytest.skip("this torch has no float8 product with a scale for each row on a CPU")
    monkeypatch.setattr(CudaFloat8, "refuse", lambda self, device: None)


@cache
def cpu_has_product() -> bool:
    rows, scale = torch.zeros(16, 16).to(torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch._scaled_mm(rows, rows.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16)
    except RuntimeError as error:
        if "per-tensor scaling" not in str(error):
            raise
        return False
    return True


def linear(weight: Tensor, **options: Any) -> ShiftLinear:
    return ShiftLinear(weight, torch.randn(len(weight)), ShiftOptions(**options)).eval()


def lowered(module: nn.Module, **chosen: Any) -> nn.Module:
    return lowered_copy(module, "cuda-fp8", LoweringSettings(**chosen))[0]


def product_of_rounded(x: Tensor, layer: ShiftLinear, met: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's product of bfloat16 inputs rounded by hand, in float64, its allowed error, and those inputs."""
    absmax = x.double().abs().amax(1, keepdim=True) if met is None else met.double()
    step = torch.exp2(torch.ceil(torch.log2((absmax / 448).clamp_min(2.0**-100))))
    codes = (x.double() / step).clamp(-448, 448)
    exponent = torch.floor(torch.log2(codes.abs().clamp_min(2.0**-6)))
    rounded = torch.round(codes * 2.0 ** (3 - exponent)) * 2.0 ** (exponent - 3) * step
    bias = layer.bias.to(torch.bfloat16).double()  # type: ignore[union-attr]
    wanted = rounded @ layer.weight.double().T + bias
    size = rounded.abs() @ layer.weight.double().abs().T + bias.abs()
    return wanted, 2.0**-8 * wanted.abs() + 2.0**-20 * size, rounded


@pytest.mark.parametrize("bits", [2, 4, 5])
@pytest.mark.parametrize("exponent", [-90, 0, 90])
def test_weights_are_those_of_the_converted_layer_bit_for_bit(anywhere: None, bits: int, exponent: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 32) * torch.exp2(exponent - torch.randint(0, 16, (16, 32)).float())
    weight[0], weight[1, 0] = 0.0, 0.0
    layer = linear(weight, bits=bits)
    form = lowered(layer)
    assert isinstance(form, Float8ShiftLinear)
    assert form.weight.dtype == torch.bfloat16
    assert torch.equal(form.weight.float(), layer.weight)


@pytest.mark.parametrize("met", [None, torch.tensor(3.0)], ids=["a step a token", "fixed step"])
def test_a_layer_is_the_exact_product_of_inputs_rounded_to_4_significant_bits(
    anywhere: None, met: Tensor | None
) -> None:
    torch.manual_seed(0)
    layer = linear(torch.randn(32, 48), bits=4)
    x = (torch.randn(5, 48) * torch.tensor([[1e-3], [1.0], [1.0], [0.5], [0.0]])).to(torch.bfloat16)
    out = lowered(layer, ranges={} if met is None else {layer: met})(x.float())
    wanted, allowed, rounded = product_of_rounded(x, layer, met)
    assert ((out - wanted).abs() <= allowed).all()
    assert (rounded - x.double()).norm() > 0.01 * x.double().norm()


def test_inputs_beyond_a_fixed_step_saturate(anywhere: None) -> None:
    layer = linear(torch.eye(16), bits=4)
    layer.bias = None
    out = lowered(layer, ranges={layer: torch.tensor(1.0)})(torch.full((1, 16), 100.0))
    assert out.unique().tolist() == [448 * 2.0**-8]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_spoils_itself_alone(anywhere: None, value: float) -> None:
    torch.manual_seed(0)
    form, x = lowered(linear(torch.randn(16, 16), bits=4)), torch.randn(3, 16)
    clean = form(x)
    x[1, 2] = value
    out = form(x)
    assert torch.equal(out[::2], clean[::2])
    assert not out[1].isfinite().all()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((16, 20), {}),
        ((20, 16), {}),
        ((16, 16), {"terms": 2, "bits": 4}),
        ((16, 16), {"bits": 8}),
        ((16, 16), {"activation_bits": 8}),
    ],
)
def test_what_float8_does_not_hold_or_multiply_is_left_to_cuda(
    anywhere: None, shape: tuple[int, int], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = linear(torch.randn(shape) * torch.exp2(-torch.randint(0, 30, shape).float()), **options)
    assert float8_linear(layer, None) is None
    _, layers = lowered_copy(nn.Sequential(layer), "cuda-fp8", LoweringSettings())
    assert "bfloat16" in layers[0].form


@pytest.mark.parametrize("calibration", [None, images(8)], ids=["dynamic", "calibrated"])
def test_a_whole_model_is_near_its_own_logits(anywhere: None, calibration: Tensor | None) -> None:
    model = reparam.convert(vit(), "shift-ptq", example_input=images(), weights="none").model
    lowering = reparam.lower(model, "cuda-fp8", calibration=calibration)
    out, wanted = lowering.model(images(8)), model(images(8))
    assert out.dtype == torch.float32
    assert (out - wanted).norm() < 0.1 * wanted.norm()
    step = "one step a token" if calibration is None else "fixed step"
    assert {layer.form for layer in lowering.layers} == {f"float8 product, {step}"}


@pytest.mark.parametrize(("capability", "reason"), [((8, 9), None), ((8, 0), "wants compute capability 8.9")])
def test_a_gpu_without_float8_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found = CudaFloat8(LoweringSettings()).refuse(torch.device("cuda", 0))
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with float8"
)
@pytest.mark.parametrize("met", [None, torch.tensor(3.0)], ids=["a step a token", "fixed step"])
def test_on_a_gpu_a_layer_is_the_exact_product_of_rounded_inputs(met: Tensor | None) -> None:
    torch.manual_seed(0)
    layer, x = linear(torch.randn(64, 128), bits=4), torch.randn(197, 128).to(torch.bfloat16)
    wanted, allowed, _ = product_of_rounded(x, layer, met)
    form = lowered(layer.cuda(), ranges={} if met is None else {layer: met.cuda()})
    # Tensor cores add products of float8 with 14 bits of the largest one.
    out, slack = form(x.cuda().float()).cpu(), 2.0**-12 * wanted.abs().amax()
    assert ((out - wanted).abs() <= allowed + slack).all()
