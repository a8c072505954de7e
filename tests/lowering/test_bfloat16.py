"""bf16: exact shift weights, the model's own types outside, and refusals where bfloat16 is too narrow."""

import pytest
import torch
from torch import Tensor

import reparam
from reparam.errors import BackendError
from reparam.lowering.base import LoweringSettings
from reparam.lowering.lower import lowered_copy
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from tests.pico import images, vit


def layer(weight: Tensor | None = None, **options: object) -> ShiftLinear:
    torch.manual_seed(0)
    return ShiftLinear(torch.randn(8, 16) if weight is None else weight, torch.randn(8), ShiftOptions(**options)).eval()  # type: ignore[arg-type]


def test_weights_are_those_of_the_converted_layer_bit_for_bit() -> None:
    shift = layer()
    lowered, _ = lowered_copy(shift, "bf16", LoweringSettings())
    assert lowered.weight.dtype == torch.bfloat16
    assert torch.equal(lowered.weight.float(), shift.weight)


def test_a_model_takes_and_gives_float32_and_is_near_its_own_logits() -> None:
    conversion = reparam.convert(vit(), "shift-ptq", example_input=images(), weights="none")
    lowered = reparam.lower(conversion.model, "bf16").model
    out, wanted = lowered(images()), conversion.model(images())
    assert out.dtype == torch.float32
    assert (out - wanted).norm() / wanted.norm() < 0.05
    assert not torch.equal(out, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_model_takes_images_of_other_floats_too(dtype: torch.dtype) -> None:
    lowered, _ = lowered_copy(layer(), "bf16", LoweringSettings())
    x = torch.randn(2, 16).to(torch.bfloat16)
    assert torch.equal(lowered(x.to(dtype)), lowered(x.float()))


def test_codes_of_8_bit_inputs_are_whole_numbers_of_the_same_grid() -> None:
    shift, x = layer(activation_bits=8), torch.randn(4, 16)
    lowered, _ = lowered_copy(shift, "bf16", LoweringSettings())
    grid = lowered.activation(x.to(torch.bfloat16))
    assert torch.equal(grid.float(), shift.activation(x.to(torch.bfloat16).float()))


@pytest.mark.parametrize(
    ("options", "reason"), [({"activation_bits": 16}, "16-bit inputs"), ({"terms": 3, "bits": 6}, "sums of powers")]
)
def test_what_bfloat16_cannot_hold_is_refused_with_its_path(options: dict[str, int], reason: str) -> None:
    shift = layer(torch.tensor([[1.0, 1 + 2**-5 + 2**-10]]).repeat(8, 8), **options)
    with pytest.raises(BackendError, match=rf"0: its {reason}"):
        lowered_copy(torch.nn.Sequential(shift), "bf16", LoweringSettings())
