"""Thresholds, scales and convolution together: closer to the softmax attention, never further away."""

from typing import Any

import pytest
import torch

from reparam.calibrate.attention import AttentionFit, fit_attention_
from reparam.ops.binary_attention import BinaryLinearAttention
from tests.calibrate.test_attention_moments import FORMS, core_of, inputs


def fitted(core: BinaryLinearAttention, parts: tuple[torch.Tensor, ...]) -> AttentionFit:
    return fit_attention_(core, lambda: zip(*(t.split(16) for t in parts), strict=True))


@pytest.mark.parametrize("codes", ["sign", "bit", "real"])
@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)
def test_the_error_that_it_tells_is_the_attentions_own_and_not_above_the_first(
    fields: dict[str, Any], codes: str
) -> None:
    core = core_of(codes=codes, **fields)
    q, k, v, y = inputs(core)
    with torch.no_grad():
        start = (core(q, k, v) - y).norm() / y.norm()
    found = fitted(core, (q, k, v, y))
    with torch.no_grad():
        error = (core(q, k, v) - y).norm() / y.norm()
    assert found.start_error == pytest.approx(float(start), rel=1e-3)
    assert found.error == pytest.approx(float(error), rel=1e-3)
    assert found.error <= found.start_error


def test_thresholds_are_found_where_queries_and_keys_are_off_centre() -> None:
    """At zero, all codes are alike and every token gets the mean."""
    core = core_of(scales="learned")
    q, k, v, y = inputs(core)
    still = fitted(core_of(scales="learned", threshold="zero"), (q + 4, k + 4, v, y))
    assert fitted(core, (q + 4, k + 4, v, y)).error < 0.95 * still.error
    assert core.threshold_q is not None
    assert core.threshold_q.abs().max() > 1


def test_it_is_deterministic_and_leaves_no_gradient() -> None:
    first, second = core_of(scales="learned"), core_of(scales="learned")
    for core in (first, second):
        fitted(core, inputs(core))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in first.parameters())


def test_an_output_that_is_always_zero_has_no_error() -> None:
    core = core_of(scales="learned")
    q, k, v, y = inputs(core)
    assert fitted(core, (q, k, torch.zeros_like(v), torch.zeros_like(y))) == (0.0, 0.0)


def test_numbers_that_are_not_finite_are_told() -> None:
    core = core_of(scales="learned")
    q, k, v, y = inputs(core)
    v[3, 0, 2, 1] = torch.inf
    with pytest.raises(ArithmeticError):
        fitted(core, (q, k, v, y))
