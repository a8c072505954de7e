import math

import numpy as np
import pytest
import torch

from reparam.cost.agreement import outputs_of, relative_error


def test_the_error_is_the_norm_of_the_difference_over_that_of_the_reference() -> None:
    reference = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    assert relative_error([torch.tensor([3.0, 1.0]), torch.tensor([4.0])], reference) == pytest.approx(1 / 5)
    assert relative_error(reference, reference) == 0


def test_other_shapes_other_numbers_of_outputs_and_what_is_not_finite_differ_infinitely() -> None:
    reference = [torch.ones(2)]
    for outputs in ([torch.ones(2, 1)], [torch.ones(2)] * 2, [], [torch.tensor([1.0, math.nan])]):
        assert relative_error(outputs, reference) == math.inf
    assert relative_error([torch.ones(1)], [torch.zeros(1)]) == math.inf
    assert relative_error([torch.zeros(1)], [torch.zeros(1)]) == 0


def test_outputs_are_found_in_what_each_engine_gives() -> None:
    one, two = torch.ones(2), torch.zeros(1, dtype=torch.bfloat16)
    assert [t.tolist() for t in outputs_of({"logits": one, "more": (two, None, 3)})] == [[1.0, 1.0], [0.0]]
    arrays = [one.numpy(), np.zeros(1, dtype=np.int64)]  # as ONNX Runtime gives them; only floats are compared
    assert [t.tolist() for t in outputs_of(arrays)] == [[1.0, 1.0]]
    assert {t.dtype for t in outputs_of((one, two))} == {torch.float32}


def test_outputs_are_copies_because_engines_write_into_the_same_memory_again() -> None:
    memory = np.ones(2, dtype=np.float32)
    (kept,) = outputs_of([memory])
    memory[:] = 0
    assert kept.tolist() == [1.0, 1.0]
