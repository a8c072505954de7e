"""Activations, each by the expression that defines it."""

from reparam.cost.formulas.form import Formula, floats, per_output
from reparam.counts import OpCount
from reparam.trace.record import Op

#: 1 - 2 / (exp(2 x) + 1)
_TANH = {"mul": 1, "exp": 1, "add": 2, "div": 1}
#: 1 / (1 + exp(-x))
_SIGMOID = {"exp": 1, "add": 1, "div": 1}
#: log(1 + exp(x))
_SOFTPLUS = {"exp": 2, "add": 1}
#: min(max(x / 6 + 1 / 2, 0), 1)
_HARD_SIGMOID = {"mul": 1, "add": 1, "cmp": 2}


def _gelu(op: Op) -> OpCount:
    """x / 2 * (1 + erf(x / sqrt(2))), or with a tanh: x / 2 * (1 + tanh(c * (x + d * x**3)))."""
    n = op.output.size
    if op.argument(1, "approximate", "none") == "tanh":
        return floats(n, mul=6, add=2) + floats(n, **_TANH)
    return floats(n, mul=3, add=1, exp=1)


def _clamp(op: Op) -> OpCount:
    bounds = (op.argument(1, "min"), op.argument(2, "max"))
    return floats(op.output.size, cmp=sum(bound is not None for bound in bounds))


def _glu(op: Op) -> OpCount:
    return floats(op.output.size, mul=1, **_SIGMOID)


def _times(n: int, verbs: dict[str, int]) -> dict[str, int]:
    return {**verbs, "mul": verbs.get("mul", 0) + n}


ACTIVATIONS: dict[str, Formula] = {
    "gelu": _gelu,
    "relu": per_output(cmp=1),
    **dict.fromkeys(("relu6", "hardtanh"), per_output(cmp=2)),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    **dict.fromkeys(("clamp_min", "clamp_max", "threshold"), per_output(cmp=1)),
    **dict.fromkeys(("leaky_relu", "prelu"), per_output(cmp=1, mul=1)),
    **dict.fromkeys(("elu", "selu", "celu"), per_output(cmp=1, exp=1, add=1, mul=1)),
    "sigmoid": per_output(**_SIGMOID),
    "silu": per_output(**_times(1, _SIGMOID)),
    "tanh": per_output(**_TANH),
    "hardsigmoid": per_output(**_HARD_SIGMOID),
    "hardswish": per_output(**_times(1, _HARD_SIGMOID)),
    "softplus": per_output(**_SOFTPLUS),
    "logsigmoid": per_output(**_SOFTPLUS),
    "mish": per_output(mul=2, exp=3, add=3, div=1),
    "glu": _glu,
}
