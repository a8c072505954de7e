import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from reparam.errors import ModelError
from reparam.models.onnx_file import open_onnx
from tests.models.onnx_bytes import tensor, value, write_classifier, write_model

pytest.importorskip("onnxruntime")

FLOAT16, INT64 = 10, 7
IMAGES = torch.arange(5 * 3 * 2 * 2).reshape(5, 3, 2, 2) / 60


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(12, 4)


@pytest.mark.parametrize("batch", ["n", 1, 2, 5, 8], ids=lambda size: f"made for {size}")
def test_every_image_gets_the_logits_of_the_torch_model_whatever_batch_the_file_was_made_for(
    tmp_path: Path, linear: nn.Linear, batch: int | str
) -> None:
    model = open_onnx(write_classifier(tmp_path / "m.onnx", linear, shape=(batch, 3, 2, 2)))
    wanted = linear(IMAGES.flatten(1)).detach()
    assert torch.allclose(model(IMAGES), wanted, atol=1e-6)
    assert torch.allclose(model(IMAGES[:1]), wanted[:1], atol=1e-6)


def test_the_images_are_fed_in_the_files_own_layout_whatever_theirs(tmp_path: Path, linear: nn.Linear) -> None:
    model = open_onnx(write_classifier(tmp_path / "m.onnx", linear, shape=("n", 3, 2, 2)))
    images = IMAGES.double().contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model(images), linear(IMAGES.flatten(1)).detach(), atol=1e-6)


def test_the_files_own_size_is_used_and_only_free_sides_are_asked_for(tmp_path: Path) -> None:
    fixed = open_onnx(write_classifier(tmp_path / "fixed.onnx", nn.Linear(24, 2), shape=("n", 1, 4, 6)))
    assert fixed.image_size(img_size=None, in_chans=None) == (1, 4, 6)
    free = write_classifier(tmp_path / "free.onnx", nn.Linear(3, 2), shape=("n", "c", "h", "w"), pools=True)
    assert open_onnx(free).image_size(img_size=8, in_chans=3) == (3, 8, 8)
    with pytest.raises(ModelError, match=r"free.onnx: does not say the size of its images; give it with --in-chans"):
        open_onnx(free).image_size(img_size=8, in_chans=None)
    with pytest.raises(ModelError, match="--img-size 8 does not fit, the file was made for 4; leave --img-size out"):
        fixed.image_size(img_size=8, in_chans=None)


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        pytest.param(("n", 12), r"\['n', 12\]", id="rank"),
        pytest.param(("n", 2, 2, 2), r"\['n', 2, 2, 2\]", id="channels"),
        pytest.param(("n", 8, 8, 3), r"\['n', 8, 8, 3\]", id="channels last"),
    ],
)
def test_a_file_that_takes_no_images_is_refused(tmp_path: Path, shape: tuple[int | str, ...], got: str) -> None:
    sides = [side for side in shape if isinstance(side, int)]
    path = write_classifier(tmp_path / "m.onnx", nn.Linear(math.prod(sides), 4), shape=shape)
    wanted = r"wanted an input \(batch, channels, height, width\) with 1, 3 or 4 channels"
    with pytest.raises(ModelError, match=rf"m.onnx: {wanted}, got {got}; export it in this layout"):
        open_onnx(path)


def test_integer_images_and_second_inputs_are_refused(tmp_path: Path) -> None:
    images, labels = value("images", ("n", 3, 2, 2), INT64), value("labels", ("n",), INT64)
    one = write_model(tmp_path / "one.onnx", [], [], inputs=[images], outputs=[images])
    with pytest.raises(ModelError, match=r"wanted an input of tensor\(float\), .*, got tensor\(int64\)"):
        open_onnx(one)
    two = write_model(tmp_path / "two.onnx", [], [], inputs=[images, labels], outputs=[images])
    with pytest.raises(ModelError, match=r"one input, a batch of images; it has 2 \(images, labels\)"):
        open_onnx(two)


def test_half_precision_images_are_taken(tmp_path: Path) -> None:
    images = value("images", ("n", 3, 2, 2), FLOAT16)
    model = open_onnx(write_model(tmp_path / "m.onnx", [], [], inputs=[images], outputs=[images]))
    assert torch.equal(model(IMAGES), IMAGES.half().float())


def test_images_that_the_graph_cannot_take_are_told_in_one_sentence(tmp_path: Path, linear: nn.Linear) -> None:
    model = open_onnx(write_classifier(tmp_path / "m.onnx", linear, shape=("n", 3, "h", "w")))
    with pytest.raises(ModelError, match=r"m.onnx: onnxruntime cannot run it: [^\n]+$"):
        model(torch.zeros(1, 3, 4, 4))


def test_an_answer_that_is_not_one_row_per_image_is_refused(tmp_path: Path) -> None:
    images, answer = value("images", ("n", 3, 2, 2)), value("answer", (1, 4))
    constant = tensor("answer", torch.ones(1, 4))
    path = write_model(tmp_path / "m.onnx", [], [constant], inputs=[images], outputs=[answer])
    with pytest.raises(ModelError, match=r"wanted logits .* got \(1, 4\) for 5 images"):
        open_onnx(path)(IMAGES)


@pytest.mark.parametrize("content", [b"hello world", b""], ids=["text", "empty"])
def test_what_is_no_onnx_file_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(
        ModelError, match=r"m.onnx: onnxruntime cannot load it as an ONNX model: [^\n]+ Export it again"
    ):
        open_onnx(tmp_path / "m.onnx")


def test_a_file_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        open_onnx(tmp_path / "m.onnx")


def test_a_missing_onnxruntime_is_told_with_the_line_that_installs_it(
    tmp_path: Path, linear: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_classifier(tmp_path / "m.onnx", linear, shape=("n", 3, 2, 2))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r'pip install "reparam\[onnx\]"'):
        open_onnx(path)
