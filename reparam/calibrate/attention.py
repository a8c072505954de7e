"""One binary linear attention's thresholds, scales and convolution from what the softmax attention made of the images.

All but the thresholds is linear and has a closed form. The thresholds start at the mean of what they part and take a
short descent on the squared error, by the operator's own surrogate gradient; then the closed form is taken again, and
the better of zero and these thresholds is kept.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reparam.calibrate.attention_moments import AttentionMoments, LinearFit
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.descent import descend_

#: What the attention is given and what it should make of it: q, k, v, y.
Parts = tuple[Tensor, ...]
#: Batches that are held for the descent, and how often it goes through them.
_HELD, _ROUNDS = 4, 25
#: Adam's first rate, for thresholds as a share of the size of queries and keys.
_LR, _SCALE_LR = 0.05, 0.01


class AttentionFit(NamedTuple):
    """|y - y'| / |y| of the attention as it starts, and once it is fitted."""

    start_error: float
    error: float


@torch.no_grad()
def fit_attention_(core: BinaryLinearAttention, batches: Callable[[], Iterator[Parts]]) -> AttentionFit:
    """Fits an attention to the dense output; its error on these batches never ends above that at its start.

    Args:
        core: with thresholds of 0 and scales of 1 and 0.
        batches: yields the same batches (q, k, v, y) each time it is called.
    Raises:
        ArithmeticError: the parts of the output are not finite.
    """
    first = _moments(core, batches())
    if not first.sums.isfinite().all():
        raise ArithmeticError("numbers that are not finite")
    power, start, found = float(first.sums[..., -1, -1].sum()), first.start_error(), first.fit()
    _put_(core, found)
    error, thresholds = found.error.sum(), [t for t in (core.threshold_q, core.threshold_k) if t is not None]
    if thresholds:
        _descend_(core, thresholds, list(itertools.islice(batches(), _HELD)))
        again = _moments(core, batches()).fit()
        if again.error.sum() < error:
            error, found = again.error.sum(), again
        else:
            for threshold in thresholds:
                threshold.zero_()
        _put_(core, found)
    if power <= 0:
        return AttentionFit(start_error=0.0, error=0.0)
    return AttentionFit(start_error=(float(start.sum()) / power) ** 0.5, error=(float(error) / power) ** 0.5)


def _moments(core: BinaryLinearAttention, batches: Iterator[Parts]) -> AttentionMoments:
    sums = AttentionMoments(core)
    for q, k, v, y in batches:
        sums.add(q, k, v, y)
    return sums


def _put_(core: BinaryLinearAttention, found: LinearFit) -> None:
    for scale, value in ((core.output_scale, found.output_scale), (core.mean_scale, found.mean_scale)):
        if scale is not None:
            scale.copy_(value)
    if core.token_conv is not None and found.taps is not None:
        core.token_conv.get_parameter("conv.weight").copy_(found.taps)


def _descend_(core: BinaryLinearAttention, thresholds: Sequence[nn.Parameter], held: Sequence[Parts]) -> None:
    """Adam on thresholds and scales, over the held batches in turns; the convolution stays."""
    for threshold, side in ((core.threshold_q, 0), (core.threshold_k, 1)):
        if threshold is not None:
            threshold.data.copy_(torch.cat([parts[side] for parts in held]).mean((0, 2)).unsqueeze(1))
    size = float(torch.stack([side.square().mean() for parts in held for side in parts[:2]]).mean().sqrt())
    scales = [scale for scale in (core.output_scale, core.mean_scale) if scale is not None]

    def loss(step: int) -> Tensor:
        q, k, v, y = held[step % len(held)]
        found: Tensor = (core(q, k, v) - y).square().mean() / y.square().mean().clamp_min(1e-12)
        return found

    rates = [(thresholds, _LR * size), (scales, _SCALE_LR)]
    descend_([rate for rate in rates if rate[0]], loss, steps=_ROUNDS * len(held))
