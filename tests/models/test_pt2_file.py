from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import ModelError
from reparam.models.file_formats import is_model_file, open_model_file
from reparam.models.pt2_file import open_pt2
from tests.compare.exported import program_of, write_pt2
from tests.pico import images


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Joined(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def write(path: Path, model: nn.Module, *arguments: Tensor) -> Path:
    return write_pt2(path, torch.export.export(model, arguments))


@pytest.mark.parametrize("batch", [None, 1, 2, 8], ids=lambda size: f"made for {size or 'any'}")
def test_every_image_gets_the_answer_of_the_torch_model_whatever_batch_the_file_was_made_for(
    tmp_path: Path, batch: int | None
) -> None:
    model = open_model_file(write_pt2(tmp_path / "m.pt2", program_of(Pooled(), batch=batch)))
    assert model.batch_size == batch
    assert model.image_size(img_size=None, in_chans=None) == (3, 16, 16)
    assert torch.equal(model.eval()(images(5)), images(5).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "arguments", "reason"),
    [
        pytest.param(Joined(), [(2, 3, 4, 4)] * 2, r"one input, a batch of images; it has 2 \(x, y\)", id="two inputs"),
        pytest.param(nn.Flatten(), [(2, 12)], r"wanted an input .* got \[2, 12\]", id="no images"),
    ],
)
def test_a_program_that_takes_no_batch_of_images_is_refused(
    tmp_path: Path, model: nn.Module, arguments: list[tuple[int, ...]], reason: str
) -> None:
    path = write(tmp_path / "m.pt2", model, *(torch.ones(shape) for shape in arguments))
    with pytest.raises(ModelError, match=reason):
        open_pt2(path)


def test_integer_images_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt2", nn.Flatten(), torch.ones(2, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(ModelError, match=r"wanted an input of floats, got torch\.int64"):
        open_pt2(path)


def test_images_that_the_program_cannot_take_are_told_in_one_sentence(tmp_path: Path) -> None:
    model = open_pt2(write_pt2(tmp_path / "m.pt2", program_of(Pooled())))
    with pytest.raises(ModelError, match=r"m.pt2: torch cannot run it: [^\n]+$"):
        model(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("content", [b"hello world", b""], ids=["text", "empty"])
def test_what_is_no_program_is_told_as_such_and_without_a_traceback(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(ModelError, match=r"m.pt2: torch cannot load it as an exported program: [^\n]+ Export it again"):
        open_pt2(tmp_path / "m.pt2")
    assert not caplog.records


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="wanted a file, got a folder"):
        open_pt2(tmp_path)


def test_a_file_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        open_pt2(tmp_path / "m.pt2")


@pytest.mark.parametrize(("name", "is_file"), [("m.onnx", True), ("M.PT2", True), ("runs/x", False), ("m.pth", False)])
def test_a_file_is_known_by_its_suffix(name: str, is_file: bool) -> None:
    assert is_model_file(name) == is_file
