"""The recipes for convolutions on timm's families of CNNs, small: what converts, what stays, and that it trains."""

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.vgg import VGG
from timm.utils.model import reparameterize_model
from torch import nn

import reparam
from reparam.ops.adder_conv2d import AdderConv2d
from reparam.trace.probe import probe
from tests.pico import images

RECIPES = {
    "addernet": "adder_conv2d",
    "shiftaddnet": "shift_adder_conv2d",
    "shiftaddnet-fixed": "shift_adder_conv2d",
    "deepshift-q": "shift_conv2d",
    "deepshift-ps": "shift_conv2d",
}
ONE_OF_EACH = {operator: recipe for recipe, operator in reversed(RECIPES.items())}.values()
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: timm.create_model("test_resnet"),
    "vgg": lambda: VGG(cfg=[8, "M", 16, "M"], num_classes=3, mlp_ratio=0.01),
    "mobilenet": lambda: timm.create_model("mobilenetv3_small_050"),
    "efficientnet": lambda: timm.create_model("test_efficientnet"),
    "same padding": lambda: timm.create_model("tf_mobilenetv3_small_minimal_100"),
    "convnext": lambda: timm.create_model("test_convnext"),
    "fused repvgg": lambda: reparameterize_model(timm.create_model("repvgg_a0")),
}


def convolutions(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def small(family: str) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


#: Every family meets every operator, and every recipe meets one family: those of one operator differ in its options.
CASES = [(family, recipe) for family in FAMILIES for recipe in RECIPES if recipe in ONE_OF_EACH or family == "resnet"]


@pytest.mark.parametrize(("family", "recipe"), CASES)
def test_every_convolution_but_the_stem_is_converted_and_a_step_stays_finite(family: str, recipe: str) -> None:
    dense = small(family)
    stem, *others = convolutions(dense)
    x = images(4, height=32, width=32)
    conversion = reparam.convert(dense, recipe, example_input=x)
    converted = {step.site.path for step in conversion.plan.steps if step.operator == RECIPES[recipe]}
    assert converted == set(others)
    kept = {skip.site.path: skip.reason for skip in conversion.plan.stages[0].skips if skip.site.kind == "conv2d"}
    assert list(kept) == [stem]
    model = conversion.model.train()
    out = model(x)
    out.square().mean().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adder_is_followed_by_a_norm(family: str) -> None:
    """Read off the trace of the converted model: either its own batch norm, or one that reads its output alone."""
    x = images(2, height=64, width=64)
    model = reparam.convert(small(family), "addernet", example_input=x).model
    trace = probe(model, x)
    norms = {"batch_norm", "group_norm", "layer_norm"}
    adders = {path: m for path, m in model.named_modules() if isinstance(m, AdderConv2d)}
    assert adders
    for path, adder in adders.items():
        (call,) = trace.calls_of(path)
        if isinstance(adder.norm, nn.Identity):
            readers = trace.users(call.outputs[0])
            while {op.name for op in readers} == {"permute"}:
                readers = trace.users(readers[0].output)
            assert {op.name for op in readers} <= norms, path
        else:
            assert trace.producer(call.outputs[0]).name == "batch_norm", path
