"""float32: the values of the converted model in eval mode, weights rounded once, nothing of training left."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import BackendError, CheckpointError
from reparam.lowering.base import LoweredModule, LoweringSettings
from reparam.lowering.lower import lowered_copy
from reparam.lowering.plain import PlainShiftLinear
from reparam.ops.base import Example, Operator
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from tests.lowering.operators import ACCEPTED, made
from tests.pico import images, vit


@pytest.mark.parametrize(("cls", "example"), ACCEPTED)
def test_every_operator_gives_its_own_values(cls: type[Operator], example: Example) -> None:
    operator, inputs = made(cls, example), example.inputs()
    lowered, _ = lowered_copy(operator, "float32", LoweringSettings())
    torch.testing.assert_close(lowered(*inputs), operator(*inputs))


@pytest.mark.parametrize(("cls", "example"), ACCEPTED)
def test_a_form_is_on_the_device_of_its_operator(cls: type[Operator], example: Example) -> None:
    lowered, _ = lowered_copy(made(cls, example).to("meta"), "float32", LoweringSettings())
    assert [name for name, tensor in lowered.state_dict().items() if not tensor.is_meta] == []


@pytest.mark.parametrize(("cls", "example"), ACCEPTED)
def test_lowering_leaves_the_converted_operator_as_it_was(cls: type[Operator], example: Example) -> None:
    operator = made(cls, example).train()
    before = copy.deepcopy(operator.state_dict())
    lowered, _ = lowered_copy(operator, "float32", LoweringSettings())
    assert operator.training
    assert not lowered.training
    assert not any(parameter.requires_grad for parameter in lowered.parameters())
    assert all(torch.equal(value, before[name]) for name, value in operator.state_dict().items())
    own = {tensor.data_ptr() for tensor in operator.state_dict().values() if tensor.numel()}
    assert not own & {tensor.data_ptr() for tensor in lowered.state_dict().values() if tensor.numel()}


@pytest.mark.parametrize("backend", ["float32", "int8", "bf16"])
def test_a_model_in_training_mode_is_lowered_with_the_weights_of_its_eval_mode(backend: str) -> None:
    torch.manual_seed(0)
    layer = ShiftLinear(torch.randn(8, 16), None, ShiftOptions(rounding="stochastic"))
    lowered, _ = lowered_copy(layer.train(), backend, LoweringSettings())
    assert layer.training
    assert torch.equal(lowered.weight.float(), layer.eval().weight)


@pytest.mark.parametrize("backend", ["float32", "int8", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_type_is_refused_with_a_way_out(backend: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2), ShiftLinear(torch.randn(2, 2), torch.zeros(2), ShiftOptions())).to(dtype)
    with pytest.raises(BackendError, match=rf"^0.weight: wanted a model in float32, got {dtype}; lower model.float()"):
        lowered_copy(model, backend, LoweringSettings())


def test_a_model_keeps_its_logits_and_says_what_became_of_each_layer() -> None:
    conversion = reparam.convert(vit(), "shiftaddvit", example_input=images(), weights="none")
    lowering = reparam.lower(conversion.model, "float32")
    torch.testing.assert_close(lowering.model(images()), conversion.model(images()))
    assert {layer.type for layer in lowering.layers} == {"ShiftLinear", "BinaryLinearAttention", "MoeMlp"}
    assert lowering.layers[0].path == "blocks.0.attn.qkv"
    assert not [m for m in lowering.model.modules() if isinstance(m, ShiftLinear)]


def test_a_layer_that_is_used_twice_stays_one() -> None:
    layer = ShiftLinear(torch.randn(4, 4), None, ShiftOptions())
    lowered, layers = lowered_copy(nn.ModuleList([layer, layer]), "float32", LoweringSettings())
    assert lowered[0] is lowered[1]
    assert len(layers) == 1


def test_the_rounded_weight_can_still_be_read() -> None:
    layer = ShiftLinear(torch.randn(4, 4), None, ShiftOptions())
    lowered, _ = lowered_copy(layer, "float32", LoweringSettings())
    assert isinstance(lowered, PlainShiftLinear)
    assert torch.equal(lowered.weight, layer.weight)


def test_a_lowered_model_is_not_saved(tmp_path: Path) -> None:
    conversion = reparam.convert(vit(), "deepshift-q", example_input=images(), weights="none")
    lowering = reparam.lower(conversion.model, "float32")
    assert any(isinstance(module, LoweredModule) for module in lowering.model.modules())
    with pytest.raises(CheckpointError, match="lowered for inference"):
        reparam.save(lowering.model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_backend_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BackendError, match='unknown backend "float23"'):
        reparam.lower(nn.Identity(), "float23")
