"""`file.py:factory`: the user's own code, with errors that say whose they are."""

import sys
from pathlib import Path

import pytest
import torch

from reparam.errors import ModelError
from reparam.models.build import build_model, build_spec
from reparam.models.factory import load_factory

NET = """
from dataclasses import dataclass

import torch
from torch import nn

from neighbour import WIDTH


@dataclass
class Config:
    width: int


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def make(num_classes=3):
    return Net(num_classes)


def reads_values(num_classes=3):
    net = Net(num_classes)
    net.scale = net.head.weight.abs().max().item()
    return net


def raises():
    raise KeyError("blocks")


def returns_text():
    return "net"


NUMBER = 3
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(NET)
    yield tmp_path / "net.py"
    sys.modules.pop("neighbour", None)


def test_a_factory_is_called_with_the_arguments_it_takes(net):
    spec = build_spec(f"{net}:make", num_classes=7, img_size=8)
    assert spec.source == "file"
    assert spec.kwargs == {"num_classes": 7}
    assert spec.input_size == (3, 8, 8)
    assert build_model(spec)(torch.zeros(1, 3, 8, 8)).shape == (1, 7)


def test_a_relative_file_is_found_from_any_folder_later(net, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(net.parent)
    spec = build_spec("net.py:make")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert build_model(spec, device="meta").head.out_features == 3


def test_the_import_leaves_the_search_path_as_it_was(net):
    before = list(sys.path)
    load_factory(f"{net}:make")
    assert sys.path == before
    assert "net" not in sys.modules


def test_a_file_is_imported_once_and_again_when_it_changes(net):
    first = load_factory(f"{net}:make")
    assert load_factory(f"{net}:make") is first
    net.write_text(NET.replace("num_classes=3", "num_classes=11"))
    assert load_factory(f"{net}:make")().head.out_features == 11


def test_a_class_has_the_same_name_wherever_its_file_lies(net, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved")
    for file in ("net.py", "neighbour.py"):
        (moved / file).write_text((net.parent / file).read_text())
    assert type(load_factory(f"{net}:make")()).__module__ == type(load_factory(f"{moved}/net.py:make")()).__module__


def test_a_factory_that_reads_its_weights_is_described_all_the_same(net):
    model = build_model(build_spec(f"{net}:reads_values"), device="meta")
    assert model.head.weight.is_meta


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nothing", 'has no function "nothing". Functions there: Config, Net, dataclass, make, raises'),
        ("NUMBER", 'has no function "NUMBER"'),
        ("raises", "raises() raised KeyError: 'blocks'"),
        ("returns_text", "wanted a torch.nn.Module"),
    ],
)
def test_a_factory_that_gives_no_module_says_why(net, factory, message):
    with pytest.raises(ModelError) as caught:
        build_spec(f"{net}:{factory}")
    assert message in str(caught.value)


def test_the_users_own_error_is_chained(net):
    with pytest.raises(ModelError) as caught:
        build_spec(f"{net}:raises")
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_argument_that_the_factory_does_not_take_is_named(net):
    with pytest.raises(ModelError, match='takes no argument "in_chans"'):
        build_spec(f"{net}:make", in_chans=1)


def test_a_size_that_the_users_model_cannot_take_is_refused(net):
    with pytest.raises(ModelError, match="cannot take images of 3 x 2 x 2"):
        build_spec(f"{net}:make", img_size=2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        build_spec(f"{tmp_path}/absent.py:make")


def test_a_file_that_fails_to_import_says_how(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    with pytest.raises(ModelError, match=r"importing it raised ModuleNotFoundError: .*no_such_package") as caught:
        build_spec(f"{tmp_path}/broken.py:make")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert "_reparam_file_broken" not in sys.modules
