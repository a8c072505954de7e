"""Empty models: no parameter has memory, every buffer has its value."""

import pytest
import timm
import torch
from torch import nn

from reparam.copying import copy_with, to_meta
from reparam.models.build import build_spec
from reparam.models.empty import build_empty, empty_copy


@pytest.mark.parametrize("name", ["deit_tiny", "resnet18", "pvt_v2_b0", "swin_tiny", "levit_128"])
def test_parameters_are_empty_and_buffers_equal_those_of_a_real_model(name):
    spec = build_spec(name)
    empty, real = build_empty(spec), timm.create_model(spec.name)
    assert all(parameter.is_meta for parameter in empty.parameters())
    buffers = dict(real.named_buffers())
    assert dict(empty.named_buffers()).keys() == buffers.keys()
    assert all(torch.equal(buffer, buffers[path]) for path, buffer in empty.named_buffers())


def test_a_tied_parameter_stays_tied(tmp_path):
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))\n"
        "    net[2].weight = net[0].weight\n"
        "    return net\n"
    )
    empty = build_empty(build_spec(f"{tmp_path}/tied.py:make"))
    assert empty[0].weight is empty[2].weight
    assert empty[0].bias is not empty[2].bias


def test_a_copy_shares_nothing_with_its_original_and_keeps_its_inner_ties():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = copy_with(model, parameter=torch.zeros_like)
    assert copied[2].weight is copied[0].weight
    assert not copied[0].bias.requires_grad
    copied[1].running_mean.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_empty_copy_leaves_the_original_its_weights():
    model = nn.Linear(3, 2)
    assert empty_copy(model).weight.is_meta
    assert not model.weight.is_meta
    assert to_meta(model.weight).shape == (2, 3)
