"""Modules share what was worked out for one of them only when nothing but their weights differs."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.graph.likeness import likeness
from reparam.trace.record import ModuleCall
from tests.pico import ATTENTION, convert, images, recipe


@dataclass
class Settings:
    gain: float


class Owner(nn.Module):
    def __init__(self, gain: Any = 1.0) -> None:
        super().__init__()
        self.layer, self.gain = nn.Linear(4, 4), gain

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Other(Owner):
    """Of another class."""


def call(*args: Any, **kwargs: Any) -> ModuleCall:
    return ModuleCall(path="", args=args, kwargs=kwargs, inputs=(), outputs=(), first_op=0, end_op=0, is_training=False)


def alike(first: nn.Module, second: nn.Module) -> bool:
    return likeness(first, [call(torch.zeros(2, 4))]) == likeness(second, [call(torch.zeros(2, 4))])


def test_modules_that_differ_in_their_weights_alone_are_alike() -> None:
    assert alike(Owner(), Owner())
    assert alike(Owner({"gain": [1, (2.0, None)]}), Owner({"gain": [1, (2.0, None)]}))
    assert alike(Owner().train(), Owner().eval())
    assert alike(Owner(torch.zeros(3)), Owner(torch.ones(3)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (7, 8),
        (True, False),
        (1, True),
        (1, 1.0),
        ("same", "valid"),
        (None, 0),
        ((2, 2), (2, 3)),
        ((2, 2), [2, 2]),
        ({"window": 7}, {"window": 8}),
        ({"window": 7}, {"size": 7}),
        ([{"shift": 0}], [{"shift": 3}]),
        ({1}, {2}),
        (Settings(1.0), Settings(2.0)),
        (lambda x: x, lambda x: 2 * x),
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long)),
    ],
)
def test_modules_that_differ_in_an_attribute_are_not_alike(first: Any, second: Any) -> None:
    assert not alike(Owner(first), Owner(second))


def test_private_attributes_of_a_model_count_like_public_ones() -> None:
    first, second = Owner(), Owner()
    first._window, second._window = 7, 8
    assert not alike(first, second)


def test_modules_of_another_class_shape_structure_or_hook_are_not_alike() -> None:
    hooked, wide, deep, twin = Owner(), Owner(), Owner(), Other()
    hooked.layer.register_forward_hook(lambda *_: None)
    wide.layer = nn.Linear(4, 5)
    deep.more = nn.Identity()
    frozen = copy.deepcopy(Owner()).half()
    for other in (hooked, wide, deep, twin, frozen):
        assert not alike(Owner(), other)


@pytest.mark.parametrize(
    "other",
    [call(torch.zeros(2, 5)), call(torch.zeros(2, 4), 1), call(x=torch.zeros(2, 4)), call(torch.zeros(2, 4).long())],
)
def test_modules_that_are_called_otherwise_are_not_alike(other: ModuleCall) -> None:
    owner = Owner()
    assert likeness(owner, [call(torch.zeros(2, 4))]) != likeness(owner, [other])


class Gained(nn.Module):
    """Attention whose values are multiplied by a number that only this object knows."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.qkv, self._gain = nn.Linear(8, 24), gain

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT).softmax(-1) @ (v * self._gain)).transpose(1, 2).flatten(2)


def test_blocks_that_differ_in_a_private_number_keep_it_when_they_are_converted() -> None:
    class Net(nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.first, self.second = nn.Conv2d(3, 8, 4, stride=4), Gained(1.0), Gained(gain)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            return self.second(self.first(tokens))

    one, four = (convert(Net(gain).eval(), recipe([ATTENTION])) for gain in (1.0, 4.0))
    torch.testing.assert_close(four(images()), 4 * one(images()))
