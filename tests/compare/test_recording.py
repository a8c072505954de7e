import pytest
import torch
from torch import Tensor, nn

from reparam.compare.recording import logits_of, record_modules
from reparam.errors import ModelError


def test_logits_are_the_first_floats_of_what_a_model_returns() -> None:
    logits = torch.randn(2, 3)
    assert torch.equal(logits_of((torch.arange(2), {"logits": logits, "mean": logits.mean()})), logits)
    with pytest.raises(ModelError, match="wanted a model that gives logits, got a tuple without a tensor of floats"):
        logits_of((torch.arange(2), None))


def test_a_model_that_takes_more_than_images_is_told() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(ModelError, match=r"^Pair does not run on images \(1, 3, 2, 2\) of torch.float32: .* 'y'$"):
        record_modules(Pair())(torch.zeros(1, 3, 2, 2))
