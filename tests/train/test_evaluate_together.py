"""Evaluation by several processes, of which one may have no images: all tell what one would, and nobody waits."""

import torch
from torch import Tensor, nn

from reparam.processes import process_count, process_index
from reparam.train.evaluate import Evaluation, evaluate_model
from reparam.train.routing import RoutingRecorder
from tests.train.gang import together
from tests.train.loops import CPU, Routed


def few_images() -> list[tuple[Tensor, Tensor]]:
    """Three images for one process; of two, the first has them all."""
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    whole = [(images, torch.tensor([0, 1, 2]))]
    return whole if process_index() == 0 else []


def evaluated(model: nn.Module) -> Evaluation:
    return evaluate_model(model.eval(), few_images(), CPU, classes={"dark": 0, "grey": 1, "light": 2})


def test_a_process_without_images_takes_part_in_counting_tokens_and_classes() -> None:
    alone = evaluated(Routed())
    assert (alone.images, list(alone.mult_share)) == (3, ["router"])
    for found in together(lambda: evaluated(Routed())):
        assert isinstance(found, Evaluation), found
        assert (found.top1, found.images, found.mult_share) == (alone.top1, alone.images, alone.mult_share)
        assert (found.per_class, found.confusion) == (alone.per_class, alone.confusion)


def test_routers_that_ran_in_one_process_only_are_added_up_by_name() -> None:
    class Either(nn.Module):
        """The first process runs the one router, the second the other one."""

        def __init__(self) -> None:
            super().__init__()
            self.routed = nn.ModuleList([Routed(), Routed(), Routed()])

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.routed[process_index()](images)
            return logits

    def shares() -> tuple[int, dict[str, float], dict[str, list[int]]]:
        with RoutingRecorder(model := Either()) as recorder:
            model(torch.randn(4 + process_index(), 1, 8, 8))
            return process_count(), recorder.shares(), recorder.state()

    for processes, found, state in together(shares):
        assert processes == 2
        assert list(found) == ["routed.0.router", "routed.1.router"]
        assert [tokens for _, tokens in state.values()] == [4, 5]
