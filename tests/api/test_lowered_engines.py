"""A converted model in every lowered form: its own answer, or the reason in words."""

import pytest
import torch
from torch import nn

from reparam.api.lowered_engines import choose_lowered_engines, lowered_engines
from reparam.cost.agreement import outputs_of, relative_error
from reparam.cost.baselines.base import Inapplicable
from reparam.cost.workload import Workload
from reparam.errors import OptionError
from reparam.lowering.base import BACKENDS
from tests.pico import LINEAR, convert, images, recipe, vit


def converted(**options: object) -> nn.Module:
    return convert(vit(), recipe([{**LINEAR, "options": options}])).eval()


def test_there_is_every_backend_by_torch_and_one_through_other_engines() -> None:
    names = [engine.name for engine in lowered_engines()]
    assert {f"{backend}+{engine}" for backend in BACKENDS.names() for engine in ("eager", "compiled")} <= set(names)
    assert {"onnx+onnxruntime", "float32+openvino"} <= set(names)
    fixed = {name for name in names if "-calibrated" in name}
    assert fixed == {f"{form}-calibrated+{engine}" for form in ("int8", "cuda-fp8") for engine in ("eager", "compiled")}


@pytest.mark.parametrize("name", ["float32+eager", "int8+eager", "int8-calibrated+eager", "onnx+onnxruntime"])
@pytest.mark.filterwarnings("ignore")  # the exporters' own use of what is deprecated
def test_a_form_gives_the_converted_models_answer(name: str) -> None:
    (engine,) = choose_lowered_engines(name)
    model = converted(bits=4)
    with Workload(model, images(2), threads=1) as workload, torch.inference_mode():
        wanted = outputs_of(model(workload.batch))
        try:
            run = engine.prepare(workload)
        except Inapplicable as reason:
            pytest.skip(str(reason))
        assert relative_error(outputs_of(run()), wanted) < engine.tolerance


def test_adders_are_timed_in_int8_on_the_steps_that_the_batch_gives_them() -> None:
    torch.manual_seed(0)
    adders = recipe([{"match": {"kind": "conv2d"}, "operator": "adder_conv2d"}])
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)), adders, images(2)).eval()
    dynamic, calibrated = (choose_lowered_engines(name)[0] for name in ("int8+eager", "int8-calibrated+eager"))
    with Workload(model, images(2), threads=1) as workload, torch.inference_mode():
        with pytest.raises(Inapplicable, match="calibration"):
            dynamic.prepare(workload)
        assert relative_error(outputs_of(calibrated.prepare(workload)()), outputs_of(model(workload.batch))) < 0.1


def test_layers_that_a_backend_cannot_take_are_a_reason_and_no_failure() -> None:
    (engine,) = choose_lowered_engines("bf16+eager")
    with (
        Workload(converted(activation_bits=16), images(2), threads=1) as workload,
        pytest.raises(Inapplicable, match=r"activation_bits = 8.*\(and \d+ more layers\)"),
    ):
        engine.prepare(workload)


def test_an_unknown_form_is_told_with_the_nearest() -> None:
    assert choose_lowered_engines("none") == ()
    with pytest.raises(OptionError, match=r'"int8\+eagr"\. Did you mean "int8\+eager"'):
        choose_lowered_engines(["all", "int8+eagr"])
