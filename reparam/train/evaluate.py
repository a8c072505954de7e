"""Evaluation: accuracy with its interval, loss, speed, results per class, and where the tokens went."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from pydantic import Field
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from torch import Tensor, nn

from reparam.errors import DataError
from reparam.modes import evaluating
from reparam.processes import gather_over_processes, sum_over_processes_
from reparam.recipe.schema import Frozen
from reparam.train.data import Batches, read_batches
from reparam.train.model_clock import ModelClock
from reparam.train.per_class import ClassResult, class_results, count_confusion_, empty_confusion
from reparam.train.routing import RoutingRecorder, mult_shares
from reparam.train.sharding import InStep

#: Quantile of the standard normal for a two-sided 95 % interval.
_Z95 = 1.959963984540054


class Evaluation(Frozen):
    """What a model gets right: percentages as timm prints them, measured on `images` images.

    `top1_interval` is Wilson's 95 % interval. Both speeds are measured here: `images_per_second` with loading,
    `model_images_per_second` in the model alone, None where the device cannot tell. `mult_share` maps the path of each
    router to the share of tokens, in [0, 1], that took the multiply expert; empty without routers.

    Only where results per class were asked for: `per_class` holds one result per output, and `confusion` the counts
    (K, K), row the true class and column the predicted one. The matrix stays out of the JSON.
    """

    top1: float
    top5: float
    loss: float
    images: int
    top1_interval: tuple[float, float]
    images_per_second: float
    model_images_per_second: float | None = None
    device: str
    mult_share: dict[str, float] = Field({})
    per_class: tuple[ClassResult, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = Field(None, exclude=True, repr=False)

    @property
    def mean_mult_share(self) -> float | None:
        """The mean of `mult_share` over layers, or None without routers."""
        return mean_share(self.mult_share)


def mean_share(mult_share: Mapping[str, float]) -> float | None:
    """Returns the mean over layers, or None without routers."""
    return sum(mult_share.values()) / len(mult_share) if mult_share else None


class Totals(NamedTuple):
    """Everything that is counted, on the device: the sum of two totals is that of both sets of images.

    `loss` is a scalar sum; `counts` (3,) images, top-1 and top-5 hits; `tokens` (L, 2) per router, as
    `RoutingRecorder.tokens`; `confusion` (K, K), or (0, 0) where it was not asked for.
    """

    loss: Tensor
    counts: Tensor
    tokens: Tensor
    confusion: Tensor


def evaluate_model(
    model: nn.Module, batches: Batches, device: torch.device, *, classes: Mapping[str, int] | None = None
) -> Evaluation:
    """Runs the model in eval mode over all batches; leaves the model in the mode it was in.

    Args:
        model: gives logits (B, K).
        batches: what it is measured on.
        device: where the model is.
        classes: names to outputs, for results per class; an output without a name is called by its number. None
            leaves these results out.
    Raises:
        DataError: there are no images, or a label lies outside the model's outputs.
        OptionError: results per class of too many classes.
    """
    clock, start = ModelClock(device), time.perf_counter()
    try:
        # Not inference mode: what a model caches on the way (position tables) must stay usable in training.
        turns = InStep(model, read_batches(batches, device=device), device=device)
        with evaluating(model), torch.no_grad(), turns, RoutingRecorder(model) as recorder:
            limit, has_confusion = evaluation_sample_limit(batches), classes is not None
            totals = _count(
                model, turns, device, limit=limit, recorder=recorder, clock=clock, has_confusion=has_confusion
            )
    except IndexError as error:
        if not str(error).startswith("Target"):
            raise
        raise DataError(
            f"a label lies outside the model's outputs ({error}); make a model with more --num-classes"
        ) from error
    for total in totals:
        sum_over_processes_(total)
    images, top1, top5 = totals.counts.tolist()
    seconds = time.perf_counter() - start
    if not images:
        raise DataError("the evaluation split has no images")
    return Evaluation(
        top1=100 * top1 / images,
        top5=100 * top5 / images,
        loss=totals.loss.item() / images,
        images=images,
        top1_interval=wilson_interval(top1, images),
        images_per_second=images / seconds,
        model_images_per_second=clock.images_per_second(),
        device=str(device),
        mult_share=mult_shares(recorder.layers, totals.tokens),
        **({} if classes is None else _by_class(totals.confusion, classes)),
    )


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion, in percent (Wilson 1927); it holds near 0 and 100 too."""
    share, z2 = correct / images, _Z95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def _count(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    limit: int | None,
    recorder: RoutingRecorder,
    clock: ModelClock,
    has_confusion: bool,
) -> Totals:
    evaluator: Any = ClassificationEvaluator(device)
    confusion = empty_confusion(0, device=device)
    left = limit
    for images, targets in batches:
        with clock.measure(len(images)):
            logits = model(images)
        if left is not None:  # a distributed sampler repeats images to fill its last batches
            logits, targets = logits[:left], targets[:left]
            left -= len(logits)
        evaluator.update(logits, targets)
        if has_confusion:
            confusion = confusion if len(confusion) else empty_confusion(logits.shape[1], device=device)
            count_confusion_(confusion, logits, targets)
    if has_confusion:  # a process that had no images learns the number of outputs from the others
        outputs = max(gather_over_processes(len(confusion)))
        confusion = confusion if len(confusion) else empty_confusion(outputs, device=device)
    return Totals(evaluator.loss_sum, evaluator.counts, recorder.tokens().to(device), confusion)


def _by_class(confusion: Tensor, classes: Mapping[str, int]) -> dict[str, Any]:
    counts = confusion.cpu()
    return {"per_class": class_results(counts, classes), "confusion": tuple(map(tuple, counts.tolist()))}
