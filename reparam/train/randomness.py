"""Random numbers as a function of where they are drawn, so that a resumed run draws what it would have drawn.

Whoever draws seeds first, from the run's seed and its own place: an image from (epoch, index), a batch from (epoch,
batch), a step from (update, process). No state of a generator has to be saved, no draw can shift another, and the
number of loader processes changes nothing.
"""

import random
from enum import IntEnum

import numpy as np
import torch


class Draw(IntEnum):
    """Who draws; numbers of one kind never meet those of another."""

    ORDER, IMAGE, BATCH, STEP = range(4)


def seed_generators(seed: int, draw: Draw, *place: int) -> None:
    """Seeds Python's, NumPy's and torch's generators for one place; every number is at least 0."""
    mixed = mix(seed, draw, *place)
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)
    if draw is Draw.IMAGE:
        torch.default_generator.manual_seed(mixed)  # the CPU's alone: all devices take as long as the image
    else:
        torch.manual_seed(mixed)


def mix(seed: int, draw: Draw, *place: int) -> int:
    """Returns a number of 63 bits that no neighbouring place resembles."""
    mixed: int = int(np.random.SeedSequence((seed, draw, *place)).generate_state(1, np.uint64)[0]) >> 1
    return mixed
