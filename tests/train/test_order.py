"""The order of training images, and random numbers by their place."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.train.order import EpochOrder
from reparam.train.randomness import Draw, mix, seed_generators

sizes = st.integers(1, 40)


def images(order: EpochOrder) -> list[int]:
    return [place.image for place in order]


@given(count=sizes, epoch=st.integers(0, 5), seed=st.integers(0, 2**40))
def test_an_epoch_gives_every_image_once_and_says_which_epoch_it_is(count: int, epoch: int, seed: int) -> None:
    order = EpochOrder(count, seed=seed)
    order.begin(epoch)
    places = list(order)
    assert sorted(place.image for place in places) == list(range(count))
    assert {place.epoch for place in places} == {epoch}


@given(count=sizes, data=st.data())
def test_beginning_later_gives_the_rest_of_the_same_order(count: int, data: st.DataObject) -> None:
    order, first = EpochOrder(count, seed=1), data.draw(st.integers(0, count))
    order.begin(3)
    whole = images(order)
    order.begin(3, first=first)
    assert images(order) == whole[first:]
    assert len(order) == count - first


@given(batch=st.integers(1, 4), steps=st.integers(1, 5), processes=st.integers(1, 4), rest=st.integers(0, 3))
def test_the_batches_of_all_processes_are_those_of_one_with_larger_batches(
    batch: int, steps: int, processes: int, rest: int
) -> None:
    count = batch * steps * processes + rest
    parts = [images(EpochOrder(count, seed=5, process=r, processes=processes)) for r in range(processes)]
    alone, large = images(EpochOrder(count, seed=5)), batch * processes
    assert len({len(part) for part in parts}) == 1
    for step in range(steps):
        together = {image for part in parts for image in part[step * batch : (step + 1) * batch]}
        assert together == set(alone[step * large : (step + 1) * large])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        made = EpochOrder(100, seed=seed)
        made.begin(epoch)
        return images(made)

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


def test_a_place_gives_the_same_numbers_in_every_generator_whatever_was_drawn_before() -> None:
    def draw(*place: int, kind: Draw = Draw.STEP) -> tuple[float, float, float]:
        random.random(), np.random.rand(), torch.rand(3)
        seed_generators(7, kind, *place)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(1, 2) == draw(1, 2)
    assert not set(draw(1, 2)) & set(draw(2, 1))
    assert not set(draw(1, 2)) & set(draw(1, 2, kind=Draw.IMAGE))


def test_neighbouring_places_share_no_seed() -> None:
    seeds = {mix(seed, draw, i, j) for seed in range(3) for draw in Draw for i in range(20) for j in range(20)}
    assert len(seeds) == 3 * len(Draw) * 400
    assert all(0 <= seed < 2**63 for seed in seeds)
