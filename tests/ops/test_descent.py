from itertools import pairwise

import torch
from torch import Tensor, nn

from reparam.ops.descent import descend_


def test_each_group_descends_at_its_own_rate_and_the_last_steps_are_small() -> None:
    fast, slow, seen = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0)), []

    def loss(step: int) -> Tensor:
        seen.append((step, fast.item(), slow.item()))
        return fast + slow

    with torch.no_grad():
        descend_([([fast], 0.1), ([slow], 0.01)], loss, steps=4)
    # Adam moves by its rate under a constant gradient; along a cosine of 4 steps the rates sum to 2.5 of the first.
    assert torch.allclose(torch.stack([1 - fast, 1 - slow]), torch.tensor([0.25, 0.025]), atol=1e-6)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    moves = [before - after for (_, before, _), (_, after, _) in pairwise(seen)]
    assert moves == sorted(moves, reverse=True)


def test_other_parameters_get_no_gradient_and_those_without_one_stay() -> None:
    mine, idle, other = (nn.Parameter(torch.tensor(1.0)) for _ in range(3))
    descend_([([mine, idle], 0.1)], lambda step: mine * other, steps=2)
    assert mine < 1
    assert (idle.item(), other.item()) == (1, 1)
    assert [p.grad for p in (mine, idle, other)] == [None] * 3


def test_no_steps_change_nothing() -> None:
    mine = nn.Parameter(torch.tensor(1.0))
    descend_([([mine], 0.1)], lambda step: mine, steps=0)
    assert mine.item() == 1
