"""What an axis counts is followed back to where it was born: images, channels, places."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.graph.axis_origin import Origin, axis_origins
from reparam.trace.probe import probe

HEADS, WIDTH = 2, 8


class Flow(nn.Module):
    """Image (B, 3, 16, 16) -> map (B, 8, 4, 4) -> tokens (B, 16, 8) -> whatever `then` makes of them."""

    def __init__(self, then: Callable[["Flow", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.layer, self.then = nn.Conv2d(3, WIDTH, 4, stride=4), nn.Linear(WIDTH, WIDTH), then
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.stem(x).flatten(2).transpose(1, 2))


def origins(then: Callable[[Flow, Tensor], Tensor], *, batch: int = 3) -> list[list[tuple[str, int]]]:
    """The origins of each axis of the result."""
    trace = probe(Flow(then), torch.empty(batch, 3, 16, 16, device="meta"))
    (out,) = trace.outputs
    return [[(o.kind, o.size) for o in axis_origins(trace, out, dim)] for dim in range(len(out.shape))]


BATCH, PLACES, CHANNELS, HEAD, DEPTH = ("batch", 3), ("tokens", 16), ("channels", 8), ("channels", 2), ("channels", 4)


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (lambda m, x: x, [[BATCH], [PLACES], [CHANNELS]]),
        (lambda m, x: m.layer(x).relu(), [[BATCH], [PLACES], [CHANNELS]]),
        (lambda m, x: x.unflatten(-1, (HEADS, -1)).transpose(1, 2), [[BATCH], [HEAD], [PLACES], [DEPTH]]),
        (lambda m, x: x.unflatten(-1, (2, 4)).transpose(1, 2).flatten(0, 1), [[BATCH, HEAD], [PLACES], [DEPTH]]),
        (lambda m, x: x.unflatten(1, (4, 4)).flatten(0, 1), [[BATCH, ("tokens", 4)], [("tokens", 4)], [CHANNELS]]),
        (lambda m, x: x.mT.reshape(6, 4, 16), [[BATCH, HEAD], [DEPTH], [PLACES]]),
        (lambda m, x: x.mT @ x, [[BATCH], [CHANNELS], [CHANNELS]]),
        (lambda m, x: x @ x.mT, [[BATCH], [PLACES], [PLACES]]),
        (lambda m, x: x.transpose(0, 1), [[PLACES], [BATCH], [CHANNELS]]),
        (lambda m, x: torch.cat([m.token.expand(len(x), -1, -1), x], 1), [[BATCH], [("tokens", 17)], [CHANNELS]]),
        (lambda m, x: x.chunk(2, -1)[0], [[BATCH], [PLACES], [DEPTH]]),
        (lambda m, x: x[..., 2:6], [[BATCH], [PLACES], [DEPTH]]),
        (lambda m, x: x + m.token, [[BATCH], [PLACES], [CHANNELS]]),
        (
            lambda m, x: x.unflatten(-1, (2, 4)).transpose(1, 2).unflatten(2, (4, 4)).amax(dim=2),
            [[BATCH], [HEAD], [("tokens", 4)], [DEPTH]],
        ),
        (lambda m, x: x.unflatten(1, (4, 4)).sum((1, -1), keepdim=False), [[BATCH], [("tokens", 4)]]),
        (lambda m, x: x.cumsum(1)[torch.tensor([0, 1])], [[("unknown", 2)], [("unknown", 16)], [("unknown", 8)]]),
    ],
    ids=[
        "tokens", "layer", "heads", "merged heads", "windows", "merged at once", "over channels", "over tokens",
        "swapped", "class token", "part", "slice", "table", "pooled", "summed", "lost",
    ],
)  # fmt: skip
def test_axes_are_followed_to_where_they_were_born(
    then: Callable[[Flow, Tensor], Tensor], expected: list[list[tuple[str, int]]]
) -> None:
    assert origins(then) == expected


def test_a_batch_of_one_image_in_front_of_the_heads_is_seen() -> None:
    merged = origins(lambda m, x: x.unflatten(-1, (2, 4)).transpose(1, 2).flatten(0, 1), batch=1)
    assert merged == [[("batch", 1), HEAD], [PLACES], [DEPTH]]


def test_heads_in_front_of_a_batch_of_one_image_are_not_behind_it() -> None:
    merged = origins(lambda m, x: x.unflatten(-1, (2, 4)).permute(2, 0, 1, 3).flatten(0, 1), batch=1)
    assert merged == [[HEAD], [PLACES], [DEPTH]]


def test_negative_axes_count_from_the_back_and_answers_are_remembered() -> None:
    trace = probe(Flow(lambda m, x: x), torch.empty(3, 3, 16, 16, device="meta"))
    (out,) = trace.outputs
    assert axis_origins(trace, out, -1) == (Origin("channels", 8),)
    assert axis_origins(trace, out, -1) is axis_origins(trace, out, 2)
