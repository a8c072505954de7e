"""Moments against the layer itself: the error that they give is the error of the outputs."""

import pytest
import torch

from reparam.calibrate.moments import by_group
from tests.calibrate.layers import FORMS, inputs, made, moments_of

forms = pytest.mark.parametrize("form", FORMS)


@forms
@pytest.mark.parametrize("options", [{}, {"activation_bits": 8}], ids=["float", "int8"])
def test_the_error_is_that_of_the_layers_output(form: str, options: dict[str, int]) -> None:
    layer, dense = made(form, **options)
    x = inputs(form)
    y = dense(x).detach().double()
    moments = moments_of(layer, dense, x)
    weight = by_group(layer, layer.weight.detach())
    out = layer(x).detach().double()
    channel = 2 if form.startswith("linear") else 1
    gap = (y - out).movedim(channel, 0).flatten(1)
    if layer.bias is not None:  # at the best bias
        gap = gap - gap.mean(1, keepdim=True)
    torch.testing.assert_close(moments.error(weight).flatten(), gap.square().sum(1), rtol=1e-4, atol=1e-4)


@forms
def test_the_dense_weights_have_no_error_on_the_dense_layers_own_inputs(form: str) -> None:
    layer, dense = made(form)
    moments = moments_of(layer, dense, inputs(form))
    error = moments.error(by_group(layer, dense.weight.detach()))
    assert float(error.sum()) < 1e-6 * float(moments.power.sum())


@forms
def test_batches_add_up(form: str) -> None:
    layer, dense = made(form)
    moments, x = moments_of(layer, dense, inputs(form)), inputs(form)
    again = moments_of(layer, dense, x.flip(0))
    torch.testing.assert_close(moments.hessian, again.hessian, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments.cross, again.cross, rtol=1e-4, atol=1e-4)


def test_a_layer_without_a_bias_is_not_centred() -> None:
    layer, dense = made("linear without bias")
    moments = moments_of(layer, dense, inputs("linear"))
    assert not moments.input_mean.any()
    assert not moments.output_mean.any()
    layer, dense = made("linear")
    moments = moments_of(layer, dense, inputs("linear"))
    torch.testing.assert_close(moments.input_mean[0], inputs("linear").double().mean((0, 1)))
