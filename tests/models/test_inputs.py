"""Inputs are described without their data and made again from a seed."""

import pytest
import torch

from reparam.models.inputs import InputSpec, input_specs, meta_inputs, seeded_inputs, with_batch


def test_a_tensor_and_a_tuple_of_arguments_are_described():
    tokens = torch.tensor([[3, 9, 0]])
    assert input_specs(torch.zeros(2, 3)) == (InputSpec(shape=(2, 3)),)
    assert input_specs((tokens, None)) == (InputSpec(shape=(1, 3), dtype="int64", high=10), InputSpec(constant=None))


def test_seeded_inputs_are_the_same_each_time_and_within_bounds():
    specs = (InputSpec(shape=(2, 50)), InputSpec(shape=(2, 50), dtype="int64", high=7), InputSpec(constant=3))
    first, second = seeded_inputs(specs, seed=0), seeded_inputs(specs, seed=0)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[1].dtype == torch.int64
    assert set(first[1].flatten().tolist()) <= set(range(7))
    assert first[2] == 3
    assert not torch.equal(first[0], seeded_inputs(specs, seed=1)[0])


def test_meta_inputs_have_shape_and_type_but_no_data():
    (tensor,) = meta_inputs([InputSpec(shape=(2, 3), dtype="int32")])
    assert tensor.is_meta
    assert (tensor.shape, tensor.dtype) == ((2, 3), torch.int32)


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [([(1, 3)], [(2, 3)]), ([(4, 3), (4,)], [(2, 3), (2,)]), ([(1, 3), (5, 3)], [(1, 3), (5, 3)]), ([()], [()])],
    ids=["one", "two alike", "two unlike", "scalar"],
)
def test_the_batch_is_changed_where_there_is_one(shapes, wanted):
    assert [spec.shape for spec in with_batch([InputSpec(shape=shape) for shape in shapes], 2)] == wanted


def test_an_unknown_type_is_named():
    with pytest.raises(TypeError, match='no dtype "float7"'):
        meta_inputs([InputSpec(shape=(1,), dtype="float7")])
