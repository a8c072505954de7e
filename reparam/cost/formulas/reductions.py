"""Softmax, sums, means, extremes, pooling and resampling."""

import math

from reparam.cost.formulas.form import Formula, first, floats, per_input, sides
from reparam.counts import OpCount
from reparam.trace.record import Op, Ref

#: Multiply-accumulates for one output of a resampling, by its mode and the axes it runs along.
_TAPS = {"linear": 2, "bilinear": 4, "bicubic": 16, "trilinear": 8}


def softmax_of(n: int) -> OpCount:
    """exp(x - max(x)) / sum(exp(x - max(x))) of `n` values."""
    return floats(n, cmp=1, add=2, exp=1, div=1)


def _softmax(op: Op) -> OpCount:
    return softmax_of(first(op).size)


def _log_softmax(op: Op) -> OpCount:
    x = first(op)
    axis = op.argument(1, "dim", -1)
    return floats(x.size, cmp=1, add=3, exp=1) + floats(x.size // x.shape[axis], exp=1)


def _mean(op: Op) -> OpCount:
    return floats(first(op).size, add=1) + floats(op.output.size, mul=1)


def _extreme(op: Op) -> OpCount:
    """A maximum over elements, or the larger of two operands each."""
    others = [ref for ref in op.args[1:2] if isinstance(ref, Ref)]
    return floats(op.output.size if others else first(op).size, cmp=1)


def _average_pool(op: Op) -> OpCount:
    taps = _window(op)
    return floats(op.output.size, add=taps, mul=1)


def _max_pool(op: Op) -> OpCount:
    return floats(op.output.size, cmp=_window(op))


def _window(op: Op) -> int:
    return math.prod(sides(op.argument(1, "kernel_size"), axes=int(op.name[-2])))


def _adaptive_average_pool(op: Op) -> OpCount:
    return floats(max(first(op).size, op.output.size), add=1) + floats(op.output.size, mul=1)


def _interpolate(op: Op) -> OpCount:
    mode = str(op.argument(3, "mode", "nearest"))
    return OpCount.multiply_accumulate(op.output.size * _TAPS.get(mode, 0))


def _grid_sample(op: Op) -> OpCount:
    mode = str(op.argument(2, "mode", "bilinear"))
    return OpCount.multiply_accumulate(op.output.size * _TAPS.get(mode, 0))


REDUCTIONS: dict[str, Formula] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    **dict.fromkeys(("sum", "cumsum", "fold"), per_input(add=1)),
    "prod": per_input(mul=1),
    "mean": _mean,
    **dict.fromkeys(("max", "min", "amax", "amin", "argmax", "argmin", "maximum", "minimum", "topk"), _extreme),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average_pool),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _adaptive_average_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), per_input(cmp=1)),
    "interpolate": _interpolate,
    "grid_sample": _grid_sample,
}
