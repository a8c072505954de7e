"""Adders taken apart give what the operators give, in bounded memory."""

from typing import Any

import pytest
import torch
from torch import nn

from reparam.exporting import adder_taps as module
from reparam.exporting.adder_taps import adder_taps
from reparam.ops.adder_conv2d import AdderConv2d
from reparam.ops.adder_linear import AdderLinear
from reparam.ops.base import Example
from reparam.ops.conv_form import ConvForm

EXAMPLES = [
    (operator, example)
    for operator in (AdderConv2d, AdderLinear)
    for example in operator.examples()
    if not example.refusal
]


@pytest.mark.parametrize("together", [1, 1 << 20], ids=["a channel at a time", "all together"])
@pytest.mark.parametrize(("operator", "example"), EXAMPLES, ids=lambda value: getattr(value, "name", ""))
def test_it_equals_the_operator(
    operator: Any, example: Example, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOGETHER", together)
    torch.manual_seed(0)
    layer = operator.from_dense(example.dense(), example.site, example.options).eval()
    inputs = example.inputs()
    with torch.no_grad():
        form = adder_taps(layer)
        assert form is not None
        assert torch.allclose(form(*inputs), layer(*inputs), rtol=1e-5, atol=1e-4)


def test_no_tensor_of_all_differences_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 4 * 8 * 8 * 2)
    example = next(example for operator, example in EXAMPLES if operator is AdderConv2d and example.name == "plain")
    layer = AdderConv2d.from_dense(example.dense(), example.site, example.options).eval()
    form = adder_taps(layer)
    assert form is not None
    program = torch.export.export(form, (torch.zeros(1, *example.inputs()[0].shape[1:]),))
    largest = max(
        node.meta["val"].numel() for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
    )
    outputs = layer(torch.zeros(1, *example.inputs()[0].shape[1:])).numel()
    assert largest <= outputs * layer.weight[0].numel() / 2


def test_other_modules_have_no_such_form() -> None:
    assert adder_taps(nn.Conv2d(3, 4, 3)) is None


def test_an_adder_that_pads_as_much_as_its_image_needs_equals_the_operator() -> None:
    form = ConvForm(kernel=(3, 3), stride=(2, 2), padding=(0, 0), dilation=(1, 1), groups=1, is_same=True)
    layer = AdderConv2d(torch.randn(4, 2, 3, 3), None, form, AdderConv2d.Options(), norm=nn.Identity()).eval()
    taken = adder_taps(layer)
    assert taken is not None
    with torch.no_grad():
        assert torch.allclose(taken(x := torch.randn(2, 2, 7, 8)), layer(x), rtol=1e-5, atol=1e-4)
