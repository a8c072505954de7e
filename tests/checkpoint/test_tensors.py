"""What a file can hold: each memory once, contiguous, nothing that needs pickle."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reparam.checkpoint.tensors import file_tensors
from reparam.errors import CheckpointError


class Holder(nn.Module):
    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


def written(tmp_path, model):
    tensors, tied = file_tensors(model)
    save_file(tensors, tmp_path / "w.safetensors")
    return load_file(tmp_path / "w.safetensors"), tied


def test_plain_tensors_are_not_copied():
    model = nn.Linear(3, 2)
    tensors, tied = file_tensors(model)
    assert tensors["weight"].data_ptr() == model.weight.data_ptr()
    assert tied == {}


def test_the_same_tensor_is_kept_under_its_first_name(tmp_path):
    shared = torch.randn(3)
    tensors, tied = written(tmp_path, Holder(b=shared, a=shared))
    assert list(tensors) == ["b"]
    assert tied == {"a": "b"}


def test_parts_of_one_storage_that_do_not_overlap_are_both_kept(tmp_path):
    flat = torch.arange(10.0)
    tensors, tied = written(tmp_path, Holder(head=flat[:4], tail=flat[4:], none=flat[:0]))
    assert tied == {}
    assert torch.equal(torch.cat([tensors["head"], tensors["tail"]]), flat)
    assert tensors["none"].shape == (0,)


def test_a_transposed_tensor_is_kept_by_value(tmp_path):
    matrix = torch.randn(3, 4)
    tensors, _ = written(tmp_path, Holder(t=matrix.T))
    assert torch.equal(tensors["t"], matrix.T)


@pytest.mark.parametrize("other", [slice(2, 6), slice(None)], ids=["part", "whole"])
def test_tensors_that_overlap_are_refused(other):
    flat = torch.arange(10.0)
    with pytest.raises(CheckpointError, match="share a part of their memory"):
        file_tensors(Holder(a=flat[:4], b=flat[other]))


def test_a_tensor_without_data_is_refused():
    with pytest.raises(CheckpointError, match="2 tensors have no data, weight among them"):
        file_tensors(nn.Linear(3, 2, device="meta"))


def test_state_that_is_no_tensor_is_refused():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"step": 3}

    with pytest.raises(CheckpointError, match="_extra_state is no tensor"):
        file_tensors(Extra(3, 2))
