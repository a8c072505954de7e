"""Layers that are found in an exported file hold what the modules of the model give."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam.compare.onnx_layers import record_onnx
from reparam.compare.pt2_layers import record_pt2
from reparam.compare.recording import Recorder, record_modules
from reparam.models.onnx_file import open_onnx
from reparam.models.pt2_file import open_pt2
from tests.compare.exported import program_of, write_onnx, write_pt2
from tests.models.onnx_bytes import write_classifier
from tests.pico import images, vit

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    found = vit()
    for parameter in found.parameters():  # zero biases and equal norms would hide a mix-up
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return found


@pytest.fixture(scope="module", params=["onnx", "onnx for 4", "pt2", "pt2 for 4"])
def recorder(request: pytest.FixtureRequest, model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    kind, _, batch = request.param.partition(" for ")
    path, program = (
        tmp_path_factory.mktemp("file") / f"m.{kind}",
        program_of(model, batch=int(batch) if batch else None),
    )
    if kind == "onnx":
        return record_onnx(open_onnx(write_onnx(path, program)))
    return record_pt2(open_pt2(write_pt2(path, program)))


def test_every_layer_of_a_file_holds_the_output_of_its_module(model: nn.Module, recorder: Recorder) -> None:
    batch = images(3)
    of_model, of_file = record_modules(model)(batch), recorder(batch)
    assert torch.allclose(of_file.logits, of_model.logits, atol=1e-5)
    wanted = {f"blocks.{i}.{part}" for i in (0, 1) for part in ("norm1", "attn.qkv", "attn", "mlp.fc1", "mlp")}
    assert wanted | {"patch_embed", "blocks.0", "norm", "head"} <= of_file.layers.keys() <= of_model.layers.keys()
    for path, (value,) in of_file.layers.items():
        assert torch.allclose(value, of_model.layers[path][0], atol=1e-5), path


def test_layers_are_in_the_order_in_which_modules_finish(model: nn.Module, recorder: Recorder) -> None:
    finished = list(record_modules(model)(images(1)).layers)
    assert [path for path in finished if path in (of_file := recorder(images(1)).layers)] == list(of_file)


def test_a_file_of_another_exporter_has_outputs_only(tmp_path: Path) -> None:
    linear = nn.Linear(12, 4)
    path = write_classifier(tmp_path / "m.onnx", linear, shape=("n", 3, 2, 2))
    found = record_onnx(open_onnx(path))(batch := torch.ones(2, 3, 2, 2))
    assert found.layers == {}
    assert torch.allclose(found.logits, linear(batch.flatten(1)), atol=1e-6)


class Reused(nn.Module):
    """Calls one layer twice, and overwrites what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.fc(x).zero_())


def test_every_call_of_a_module_is_kept_as_it_was_and_no_hook_stays() -> None:
    model, x = Reused(), torch.ones(1, 2)
    first, second = record_modules(model)(x).layers["fc"]
    assert torch.equal(first, model.fc(x))
    assert torch.equal(second, model.fc(torch.zeros(1, 2)))
    assert not any(_hooks(model))


def _hooks(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        yield from module._forward_hooks.values()
