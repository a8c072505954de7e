"""adder_conv2d against explicit formulas: values, AdderNet's gradients, padding, types, memory formats, compilers."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ops import adder_function
from reparam.ops.adder_function import adder_conv2d
from reparam.ops.adder_layer import scaled_gradient
from tests.kernels import oracle
from tests.kernels.oracle import Case, cases

CASES = {
    "plain": Case(),
    "padded": Case(channels=(3, 20), padding=(1, 1)),
    "masked": Case(channels=(3, 20), padding=(2, 1), mask=True),
    "strided": Case(image=(9, 8), channels=(5, 18), kernel=(3, 2), stride=(2, 3), padding=(1, 1)),
    "grouped": Case(channels=(2, 3), padding=(2, 2), dilation=(2, 1), groups=4, mask=True),
    "depthwise": Case(channels=(1, 1), padding=(1, 1), groups=6, mask=True),
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
both_masks = pytest.mark.parametrize("mask", [False, True], ids=["counted", "masked"])


def apply(x: Tensor, weight: Tensor, case: Case, bias: Tensor | None = None) -> Tensor:
    options: dict[str, Any] = dict(zip(("stride", "padding", "dilation", "groups"), case.sizes, strict=True))
    return adder_conv2d(x, weight, bias, mask=case.mask, **options)


def gradients(x: Tensor, weight: Tensor, gradient: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Of x and of the weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    to_x, to_weight = torch.autograd.grad(apply(x, weight, case), (x, weight), gradient)
    return to_x, to_weight


class Layer(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        weight = case.tensors(torch.float32)[1]
        self.case, self.weight = case, nn.Parameter(weight)
        self.bias = nn.Parameter(torch.linspace(-1, 1, len(weight)))

    def forward(self, x: Tensor) -> Tensor:
        return apply(x, self.weight, self.case, self.bias)


def test_the_published_check_vector() -> None:
    x = torch.tensor([0.5, -1, 2]).view(1, 3, 1, 1).requires_grad_()
    weight = torch.tensor([[1, 1, 0.25], [0, -2, 3]]).view(2, 3, 1, 1).requires_grad_()
    y = adder_conv2d(x, weight)
    assert y.flatten().tolist() == [-4.25, -2.5]
    y.backward(torch.tensor([1, -0.5]).view(1, 2, 1, 1))
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.flatten().tolist() == [0.75, 1.5, -1.5]
    assert weight.grad.flatten(1).tolist() == [[-0.5, -2, 1.75], [-0.25, -0.5, 0.5]]
    assert weight.grad.norm().item() == pytest.approx(2.8062, abs=1e-4)
    scaled = torch.tensor([[-0.0873, -0.3491, 0.3055], [-0.0436, -0.0873, 0.0873]])
    torch.testing.assert_close(scaled_gradient(weight.grad, 0.2).flatten(1), scaled, rtol=0, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(cases(most_channels=12, mask=True))
def test_values_and_gradients_are_the_published_formulas(case: Case) -> None:
    x, weight, gradient = case.tensors()
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(apply(x, weight, case), oracle.forward(x, weight, case), **close)
    to_x, to_weight = gradients(x, weight, gradient, case)
    torch.testing.assert_close(to_x, oracle.input_gradient(gradient, x, weight, case), **close)
    torch.testing.assert_close(to_weight, oracle.weight_gradient(gradient, x, weight, case), **close)


@settings(max_examples=40, deadline=None)
@given(cases(most_channels=20, mask=True))
def test_float32_gives_what_double_precision_gives(case: Case) -> None:
    tensors = case.tensors(torch.float32)
    wide = tuple(tensor.double() for tensor in tensors)
    assert_like(apply(*tensors[:2], case), apply(*wide[:2], case))
    for single, double in zip(gradients(*tensors, case), gradients(*wide, case), strict=True):
        assert_like(single, double)


def assert_like(single: Tensor, double: Tensor) -> None:
    assert single.dtype == torch.float32
    scale = double.abs().max().item() + 1
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5 * scale)


@all_cases
def test_gradients_are_the_surrogates_and_not_the_derivatives(case: Case) -> None:
    x, weight, gradient = case.tensors()
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    derivatives = torch.autograd.grad(oracle.forward(*leaves, case), leaves, gradient)
    for surrogate, derivative in zip(gradients(x, weight, gradient, case), derivatives, strict=True):
        assert (surrogate - derivative).norm() > 0.1 * derivative.norm()


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Tensor:
        raise AssertionError("not asked for")

    x, weight, gradient = CASES["padded"].tensors(torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(adder_function, "adder_input_gradient", refuse)
        apply(x, weight.requires_grad_(), CASES["padded"]).backward(gradient)
    with monkeypatch.context() as patch:
        patch.setattr(adder_function, "_weight_gradient", refuse)
        apply(x.requires_grad_(), weight.detach(), CASES["padded"]).backward(gradient)


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    x, weight, _ = Case().tensors()
    x.requires_grad_()
    (first,) = torch.autograd.grad(apply(x, weight, Case()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(("mask", "expected"), [(False, -35.0), (True, -18.0)], ids=["counted", "masked"])
def test_a_padded_pixel_counts_its_weight_or_nothing(mask: bool, expected: float) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    weight = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    # At the upper left the weights 1, 2, 3, 4, 7 read padding, and 5, 6, 8, 9 read 1, 2, 3, 4.
    y = adder_conv2d(x, weight, padding=(1, 1), mask=mask)
    assert y.shape == (1, 1, 2, 2)
    assert y[0, 0, 0, 0].item() == expected


def test_a_mask_changes_nothing_where_nothing_is_padded() -> None:
    x, weight, gradient = Case().tensors()
    masked = replace(Case(), mask=True)
    assert torch.equal(apply(x, weight, Case()), apply(x, weight, masked))
    for one, other in zip(gradients(x, weight, gradient, Case()), gradients(x, weight, gradient, masked), strict=True):
        torch.testing.assert_close(one, other)


@both_masks
def test_a_bias_is_added_and_learns(mask: bool) -> None:
    case = replace(CASES["padded"], mask=mask)
    x, weight, gradient = case.tensors(torch.float32)
    bias = torch.randn(len(weight), generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = apply(x, weight, case, bias)
    torch.testing.assert_close(y, apply(x, weight, case) + bias[:, None, None])
    y.backward(gradient)
    torch.testing.assert_close(bias.grad, gradient.sum((0, 2, 3)))


@both_masks
@pytest.mark.parametrize("channels", [(3, 20), (16, 16), (1, 1), (5, 1)], ids=str)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_memory_format_follows_the_input(form: torch.memory_format, channels: tuple[int, int], mask: bool) -> None:
    case = Case(channels=channels, padding=(1, 1), mask=mask)
    x, weight, gradient = case.tensors(torch.float32)
    x = x.to(memory_format=form).requires_grad_()
    y = apply(x, weight, case)
    (to_x,) = torch.autograd.grad(y, x, gradient)
    assert y.is_contiguous(memory_format=form)
    assert to_x.is_contiguous(memory_format=form)
    if form == torch.contiguous_format:
        assert y.view(len(x), -1).shape == (2, channels[1] * 30)


@all_cases
def test_the_memory_format_changes_no_value(case: Case) -> None:
    x, weight, gradient = case.tensors(torch.float32)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(apply(x, weight, case), apply(last, weight, case))
    for one, other in zip(gradients(x, weight, gradient, case), gradients(last, weight, gradient, case), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("weights", ["half", "float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@all_cases
def test_half_precision_is_float32_rounded_at_the_end(case: Case, dtype: torch.dtype, weights: str) -> None:
    x, weight, gradient = case.tensors(dtype)
    if weights == "float32":
        weight = weight.float()
    y = apply(x, weight, case)
    assert torch.equal(y, apply(x.float(), weight.float(), case).to(dtype))
    to_x, to_weight = gradients(x, weight, gradient, case)
    wide_x, wide_weight = gradients(x.float(), weight.float(), gradient.float(), case)
    assert torch.equal(to_x, wide_x.to(dtype))
    torch.testing.assert_close(to_weight, wide_weight.to(weight.dtype))


def test_sums_that_half_precision_would_lose_are_kept_apart() -> None:
    x = torch.ones(1, 512, 1, 1, dtype=torch.bfloat16)
    weight = torch.zeros(1, 512, 1, 1)
    weight[:, 256:] = 2.0**-9  # 1 - 2**-9 is 1 in bfloat16
    assert adder_conv2d(x.float(), weight).item() == -511.5
    assert adder_conv2d(x, weight).item() == torch.tensor(-511.5).bfloat16().item()


@all_cases
def test_autocast_changes_nothing(case: Case) -> None:
    x, weight, gradient = case.tensors(torch.float32)
    y, wanted = apply(x, weight, case), gradients(x, weight, gradient, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply(x, weight, case), y)
        got = gradients(x, weight, gradient, case)
        half = apply(x.bfloat16(), weight, case)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert torch.equal(half, apply(x.bfloat16().float(), weight, case).bfloat16())
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)


@both_masks
def test_an_empty_batch_gives_empty_results_and_a_zero_weight_gradient(mask: bool) -> None:
    case = replace(CASES["padded"], batch=0, mask=mask)
    x, weight, gradient = case.tensors(torch.float32)
    assert apply(x, weight, case).shape == (0, 20, 6, 5)
    to_x, to_weight = gradients(x, weight, gradient, case)
    assert to_x.shape == x.shape
    assert torch.equal(to_weight, torch.zeros_like(weight))


@all_cases
def test_an_exported_program_has_common_operations_only(case: Case) -> None:
    layer, x = Layer(case), case.tensors(torch.float32)[0]
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("cdist" in operation for operation in operations)
    assert not any("reparam" in operation or "autocast" in operation for operation in operations)


def test_an_exported_program_takes_any_batch() -> None:
    layer, x = Layer(CASES["masked"]), CASES["masked"].tensors(torch.float32)[0]
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    many = torch.cat([x, x.flip(0), x])
    torch.testing.assert_close(program.module()(many), layer(many), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@all_cases
def test_compiled_training_is_eager_training(case: Case) -> None:
    layer, (x, _, gradient) = Layer(case), case.tensors(torch.float32)
    results = []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        y.backward(gradient)
        results.append((y, leaf.grad, layer.weight.grad, layer.bias.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@given(st.integers(-24, 24), st.floats(0.01, 10))
def test_a_scaled_gradient_has_the_same_norm_whatever_the_loss_scale(exponent: int, eta: float) -> None:
    gradient = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    scaled = scaled_gradient(gradient * 2.0**exponent, eta)
    assert scaled.norm().item() == pytest.approx(eta * math.sqrt(30), rel=1e-5)
    torch.testing.assert_close(scaled, scaled_gradient(gradient, eta))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_zero_gradient_stays_zero(dtype: torch.dtype) -> None:
    scaled = scaled_gradient(torch.zeros(4, 3, dtype=dtype), 0.2)
    assert scaled.dtype == dtype
    assert torch.equal(scaled, torch.zeros_like(scaled))
