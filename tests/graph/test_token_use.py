"""Whether only class tokens of an attention are read, against models whose classifier reads known tokens."""

import pytest
import torch
from torch import Tensor, nn

from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.trace.probe import probe
from tests.pico import images, vit


def prefix_only(model: nn.Module) -> list[bool]:
    scene = Scene(model, probe(model, images()))
    return [s.attention.reads_only_prefix for s in find_sites(scene) if s.attention is not None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [False, True]),
        ({"global_pool": "avg"}, [False, False]),
        ({"global_pool": "map"}, [False, False]),
        ({"num_classes": 0, "global_pool": ""}, [False, False]),
        ({"reg_tokens": 2}, [False, True]),
        ({"class_token": False, "global_pool": "avg"}, [False, False]),
    ],
    ids=str,
)
def test_only_the_last_block_of_a_class_token_model_is_read_through_its_prefix(
    options: dict[str, object], expected: list[bool]
) -> None:
    assert prefix_only(vit(**options))[:2] == expected


class Reader(nn.Module):
    """A class-token ViT whose features are read in a way of one's own."""

    def __init__(self, read: object) -> None:
        super().__init__()
        self.body, self.read = vit(num_classes=0), read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.body.forward_features(x))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda t: t[:, 0], True),
        (lambda t: t[:, :1].mean(dim=1), True),
        (lambda t: t.select(1, 0), True),
        (lambda t: t[:, 1], False),
        (lambda t: t[:, -1], False),
        (lambda t: t[:, :2], False),
        (lambda t: t[:, 1:].mean(dim=1), False),
        (lambda t: t[:, 0] + t.mean(dim=1), False),
        (lambda t: t.roll(1, dims=1)[:, 0], False),
        (lambda t: (t @ t.transpose(1, 2))[:, 0], False),
        (lambda t: t.softmax(dim=1)[:, 0], False),
        (lambda t: t[..., 0, :], False),
    ],
    ids=["index", "slice", "select", "patch", "last", "two", "patches", "both", "roll", "product", "softmax", "unsure"],
)
def test_the_way_features_are_read_decides(read: object, expected: bool) -> None:
    assert prefix_only(Reader(read))[-1] is expected


def test_a_token_that_is_not_read_gets_no_gradient_where_it_is_said_so() -> None:
    """The claim itself, by autograd: the last attention's patch outputs have zero gradient."""
    model = vit().eval()
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    model.blocks[-1].attn.register_forward_hook(keep)
    model(images()).square().sum().backward()
    assert kept[0].grad is not None
    assert torch.equal(kept[0].grad[:, 1:], torch.zeros_like(kept[0].grad[:, 1:]))
    assert kept[0].grad[:, 0].abs().sum() > 0
