import pytest
import torch
from torch import Tensor, nn

from reparam.errors import ExportError
from reparam.exporting.program import exported_program


class ByBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_is_any(batch: int) -> None:
    run = exported_program(nn.Flatten(), (3, 4, 4), batch_size=None).module()
    assert run(torch.ones(batch, 3, 4, 4)).shape == (batch, 48)


def test_one_batch_is_one() -> None:
    run = exported_program(nn.Flatten(), (3, 4, 4), batch_size=5).module()
    with pytest.raises((AssertionError, RuntimeError)):
        run(torch.ones(4, 3, 4, 4))


def test_a_batch_size_that_is_baked_in_is_told_and_the_fixed_form_offered() -> None:
    with pytest.raises(ExportError, match=r"fixes its batch size .* Export it for one size: --fixed-batch"):
        exported_program(ByBatch(), (3, 4, 4), batch_size=None)
    assert exported_program(ByBatch(), (3, 4, 4), batch_size=2) is not None


@pytest.mark.parametrize("batch", [None, 2], ids=["any batch", "one batch"])
def test_a_forward_that_decides_by_values_is_told_in_one_line(batch: int | None) -> None:
    with pytest.raises(ExportError, match=r"^torch.export refuses the model: [^\n]+ cannot be exported$"):
        exported_program(ByValue(), (3, 4, 4), batch_size=batch)
