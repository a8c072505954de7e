"""Normalisations. Each row of C values that is normalised together costs a mean, a variance and their inverse root."""

import math

from reparam.cost.formulas.form import Formula, first, floats
from reparam.counts import OpCount
from reparam.trace.record import Op, Ref


def _standardised(n: int, rows: int) -> OpCount:
    """(x - mean(x)) / sqrt(var(x) + eps) of `n` values in `rows` rows.

    Mean: n additions, a multiplication each row. Centring: n additions. Variance: n multiply-accumulates, a
    multiplication each row. Inverse root: an addition, a root and a division each row. Scaling: n multiplications.
    """
    return floats(n, mul=2, add=3) + floats(rows, mul=2, add=1, sqrt=1, div=1)


def _affine(op: Op, weight: int, bias: int, names: tuple[str, str] = ("weight", "bias")) -> OpCount:
    n = op.output.size
    scaled = isinstance(op.argument(weight, names[0]), Ref)
    shifted = isinstance(op.argument(bias, names[1]), Ref)
    return floats(n, mul=int(scaled), add=int(shifted))


def _layer_norm(op: Op) -> OpCount:
    n, width = first(op).size, math.prod(op.argument(1, "normalized_shape"))
    return _standardised(n, n // width) + _affine(op, 2, 3)


def _group_norm(op: Op) -> OpCount:
    rows = first(op).shape[0] * op.argument(1, "num_groups")
    return _standardised(first(op).size, rows) + _affine(op, 2, 3)


def _instance_norm(op: Op) -> OpCount:
    return _standardised(first(op).size, math.prod(first(op).shape[:2])) + _affine(op, 3, 4)


def _batch_norm(op: Op) -> OpCount:
    if op.argument(5, "training", False):
        return _standardised(first(op).size, first(op).shape[1]) + _affine(op, 3, 4)
    return floats(op.output.size, mul=1, add=1)


def _rms_norm(op: Op) -> OpCount:
    """x / sqrt(mean(x**2) + eps)."""
    n, width = first(op).size, math.prod(op.argument(1, "normalized_shape"))
    return floats(n, mul=2, add=1) + floats(n // width, mul=1, add=1, sqrt=1, div=1) + _affine(op, 2, 9)


def _normalize(op: Op) -> OpCount:
    """x / max(|x|, eps), along one axis."""
    x = first(op)
    rows = x.size // x.shape[op.argument(2, "dim", 1)]
    return floats(x.size, mul=1, add=1, div=1) + floats(rows, sqrt=1, cmp=1)


def _vector_norm(op: Op) -> OpCount:
    return floats(first(op).size, mul=1, add=1) + floats(op.output.size, sqrt=1)


def _variance(op: Op) -> OpCount:
    """A mean and a mean of squares around it; the root of it for a standard deviation."""
    n, rows = first(op).size, op.output.size
    return floats(n, mul=1, add=3) + floats(rows, mul=2, sqrt=int(op.name.startswith("std")))


NORMS: dict[str, Formula] = {
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "rms_norm": _rms_norm,
    "normalize": _normalize,
    **dict.fromkeys(("norm", "linalg_norm", "linalg_vector_norm", "vector_norm"), _vector_norm),
    **dict.fromkeys(("var", "var_mean", "std", "std_mean"), _variance),
}
