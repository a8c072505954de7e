import math

import pytest
import torch
from torch import Tensor

from reparam.compare.difference import Comparison, Running
from reparam.compare.recording import Recording
from reparam.errors import ModelError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recording(logits: Tensor, **layers: Tensor) -> Recording:
    return Recording(logits=logits, layers={path: [tensor] for path, tensor in layers.items()})


def test_figures_over_batches_are_those_of_all_values_at_once() -> None:
    a, b, running = drawn(5, 3), drawn(5, 3) + 0.1 * drawn(5, 3, seed=1), Running()
    for one, other in zip(a.split(2), b.split(2), strict=True):
        running.add(one, other)
    found = running.difference("x")
    assert found.relative_error == pytest.approx(((b - a).norm() / a.norm()).item(), rel=1e-5)
    assert found.max_abs_error == (b - a).abs().max().item()
    assert found.correlation == pytest.approx(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item())


@pytest.mark.parametrize(
    ("a", "b", "relative", "largest"),
    [
        pytest.param([0.0, 0.0], [0.0, 0.0], 0.0, 0.0, id="zeros"),
        pytest.param([0.0, 0.0], [0.0, 1.0], None, 1.0, id="of zeros no share"),
        pytest.param([1.0, math.nan], [1.0, 1.0], None, None, id="not a number"),
        pytest.param([1.0, -math.inf], [1.0, -math.inf], 0.0, 0.0, id="equal infinities"),
        pytest.param([1.0, 1.0], [1.0, math.inf], None, None, id="one infinity"),
    ],
)
def test_what_is_no_number_is_none_and_exceeds_every_tolerance(
    a: list[float], b: list[float], relative: float | None, largest: float | None
) -> None:
    running = Running()
    running.add(torch.tensor(a), torch.tensor(b))
    found = running.difference("x")
    assert (found.relative_error, found.max_abs_error) == (relative, largest)
    assert found.exceeds(1e6) == (relative is None)


def test_the_first_layer_beyond_the_tolerance_is_named_with_the_one_before() -> None:
    a = recording(drawn(4, 3), fc1=drawn(4, 2), act=drawn(4, 2), fc2=drawn(4, 2), only_a=drawn(4), other=drawn(4))
    b = recording(
        2 * drawn(4, 3),
        fc2=drawn(4, 2),
        act=drawn(4, 2) * 1.01,
        fc1=drawn(4, 2) * 1.0001,
        only_b=drawn(4),
        other=drawn(5),
    )
    comparison = Comparison("a", "b")
    comparison.add(a, b)
    made = comparison.verdict(data="random", tolerance=1e-3)
    assert made.first is not None
    assert made.before is not None
    assert (made.agree, made.first.path, made.before.path) == (False, "act", "fc1")
    assert [layer.path for layer in made.layers] == ["fc1", "act", "fc2"]
    assert made.uncompared == ("other",)
    assert made.top1_agreement == 100.0


def test_outputs_decide_and_a_layer_may_differ_all_the_same() -> None:
    comparison = Comparison("a", "b")
    comparison.add(recording(torch.eye(4), fc=torch.ones(4, 2)), recording(torch.eye(4), fc=torch.zeros(4, 2)))
    made = comparison.verdict(data="random", tolerance=0.0)
    assert made.agree
    assert made.first is not None
    assert (made.first.path, made.before) == ("fc", None)


def test_the_share_of_equal_answers_counts_images() -> None:
    comparison = Comparison("a", "b")
    for flipped in (0, 1):
        comparison.add(recording(torch.eye(2)), recording(torch.eye(2).roll(flipped, 0)))
    assert comparison.verdict(data="random", tolerance=0.0).top1_agreement == 50.0


def test_outputs_of_other_shapes_are_told_with_both() -> None:
    with pytest.raises(ModelError, match=r"a gives \(2, 3\), b gives \(2, 4\)"):
        Comparison("a", "b").add(recording(torch.ones(2, 3)), recording(torch.ones(2, 4)))
