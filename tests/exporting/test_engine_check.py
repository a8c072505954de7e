"""Outputs that cannot be compared: what is said of them, and that no larger tolerance is advised."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import ExportError
from reparam.exporting.base import Sample
from reparam.exporting.engine_check import Engine, check_engines
from reparam.models.model_file import ModelFile

SAMPLE = Sample(images=torch.ones(9, 3, 2, 2), words="drawn", preparation={})


class Scaled(nn.Module):
    """Sums of channels (B, 4), times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.sums, self.factor = nn.Flatten(), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.sums(x.sum(1)) * self.factor


class File(ModelFile):
    def __init__(self, factor: float) -> None:
        super().__init__(where="m.onnx", sides=["any", 3, 2, 2])
        self._model = Scaled(factor)

    def run(self, images: Tensor) -> Tensor | None:
        found: Tensor = self._model(images)
        return found


def check(model: nn.Module, factor: float, *, tolerance: float = 1e-2) -> None:
    engine = Engine(name="Engine", file=File(factor))
    check_engines(model, [engine], SAMPLE, tolerance=tolerance, tell=lambda text: None)


def test_what_differs_by_a_number_may_pass_with_a_larger_tolerance() -> None:
    with pytest.raises(ExportError, match=r"by 0\.1 of their size; .* raise --tolerance \(now 0\.01\)$"):
        check(Scaled(1.0), 1.1)
    check(Scaled(1.0), 1.1, tolerance=0.2)


@pytest.mark.parametrize("tolerance", [1e-2, float("inf")])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_file_whose_outputs_are_not_finite_never_passes(factor: float, tolerance: float) -> None:
    with pytest.raises(ExportError, match=r"by values that are not finite; .* No tolerance lets that pass$"):
        check(Scaled(1.0), factor, tolerance=tolerance)


def test_nor_does_one_that_differs_from_zeros() -> None:
    with pytest.raises(ExportError, match=r"than the model, whose are all 0; .* No tolerance lets that pass$"):
        check(Scaled(0.0), 1.0)


def test_a_model_whose_own_outputs_are_not_finite_is_told_as_such_with_its_first_layer() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            second = torch.arange(len(x)).view(-1, 1, 1, 1) == 1
            return torch.where(second, torch.nan, x)

    model = nn.Sequential(nn.ReLU(), Broken(), Scaled(1.0))
    with pytest.raises(
        ExportError, match=r"^the model's own outputs are not finite, first in 1, on its images"
    ) as told:
        check(model, float("nan"))
    assert "tolerance" not in str(told.value)


@pytest.mark.parametrize("wrapped", [lambda x: (x, x.mean()), lambda x: {"logits": x}], ids=["tuple", "dictionary"])
def test_of_several_outputs_the_first_is_compared(wrapped: Callable[[Tensor], object]) -> None:
    class Wrapping(Scaled):
        def forward(self, x: Tensor) -> object:  # type: ignore[override]
            return wrapped(super().forward(x))

    check(Wrapping(1.0), 1.0)
    with pytest.raises(ExportError, match=r"by 0\.1 of their size"):
        check(Wrapping(1.0), 1.1)
