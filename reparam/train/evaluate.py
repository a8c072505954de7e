"""Evaluation: accuracy with its interval, loss, speed, and where the tokens went."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from torch import nn

from reparam.errors import DataError
from reparam.recipe.schema import Frozen
from reparam.train.data import Batches, read_batches
from reparam.train.routing import RoutingRecorder

#: Quantile of the standard normal for a two-sided 95 % interval.
_Z95 = 1.959963984540054


class Evaluation(Frozen):
    """What a model gets right: percentages as timm prints them, measured on `images` images.

    `top1_interval` is Wilson's 95 % interval. `images_per_second` is measured here, loading included. `mult_share` maps
    the path of each router to the share of tokens, in [0, 1], that took the multiply expert; empty without routers.
    """

    top1: float
    top5: float
    loss: float
    images: int
    top1_interval: tuple[float, float]
    images_per_second: float
    device: str
    mult_share: dict[str, float] = Field({})

    @property
    def mean_mult_share(self) -> float | None:
        """The mean of `mult_share` over layers, or None without routers."""
        return mean_share(self.mult_share)


def mean_share(mult_share: Mapping[str, float]) -> float | None:
    """Returns the mean over layers, or None without routers."""
    return sum(mult_share.values()) / len(mult_share) if mult_share else None


def evaluate_model(model: nn.Module, batches: Batches, device: torch.device) -> Evaluation:
    """Runs the model in eval mode over all batches; leaves the model in the mode it was in.

    Raises:
        DataError: there are no images, or a label lies outside the model's outputs.
    """
    was_training = model.training
    totals: Any = ClassificationEvaluator(device, max_samples=evaluation_sample_limit(batches))
    start = time.perf_counter()
    try:
        # Not inference mode: what a model caches on the way (position tables) must stay usable in training.
        with torch.no_grad(), RoutingRecorder(model.eval()) as recorder:
            for images, targets in read_batches(batches, device=device):
                totals.update(model(images), targets)
            figures, seen, shares = totals.compute(), int(totals.counts[0]), recorder.shares()
    except IndexError as error:
        if not str(error).startswith("Target"):
            raise
        raise DataError(
            f"a label lies outside the model's outputs ({error}); make a model with more --num-classes"
        ) from error
    finally:
        model.train(was_training)
    if not seen:
        raise DataError("the evaluation split has no images")
    return Evaluation(
        top1=figures["top1"],
        top5=figures["top5"],
        loss=figures["loss"],
        images=seen,
        top1_interval=wilson_interval(round(figures["top1"] * seen / 100), seen),
        images_per_second=seen / (time.perf_counter() - start),
        device=str(device),
        mult_share=shares,
    )


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion, in percent (Wilson 1927); it holds near 0 and 100 too."""
    share, z2 = correct / images, _Z95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
