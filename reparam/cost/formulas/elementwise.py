"""Arithmetic on one element at a time."""

from reparam.cost.formulas.form import Formula, floats, per_output
from reparam.counts import OpCount
from reparam.trace.record import Op, Ref


def _divide(op: Op) -> OpCount:
    """A number is divided by through its reciprocal, known beforehand."""
    is_known = not isinstance(op.argument(1, "other"), Ref) and not op.name.startswith("r")
    return floats(op.output.size, mul=1) if is_known else floats(op.output.size, div=1)


def _power(op: Op) -> OpCount:
    exponent = op.argument(1, "exponent")
    n = op.output.size
    if exponent == 0.5:
        return floats(n, sqrt=1)
    if exponent == -0.5:
        return floats(n, sqrt=1, div=1)
    if isinstance(exponent, int | float) and exponent == int(exponent) and 1 <= exponent <= 4:
        return floats(n, mul=int(exponent) - 1)
    return floats(n, exp=1)


ELEMENTWISE: dict[str, Formula] = {
    **dict.fromkeys(("add", "radd", "iadd", "sub", "rsub", "isub"), per_output(add=1)),
    **dict.fromkeys(("mul", "rmul", "imul", "multiply"), per_output(mul=1)),
    **dict.fromkeys(("div", "truediv", "itruediv", "rtruediv", "rdiv", "divide", "true_divide"), _divide),
    "reciprocal": per_output(div=1),
    **dict.fromkeys(("pow", "float_power"), _power),
    "rpow": per_output(exp=1),
    "square": per_output(mul=1),
    "sqrt": per_output(sqrt=1),
    "rsqrt": per_output(sqrt=1, div=1),
    **dict.fromkeys(("exp", "exp2", "log", "log2", "log1p", "expm1", "erf", "sin", "cos", "atan2"), per_output(exp=1)),
    "abs": per_output(abs=1),
    **dict.fromkeys(("sign", "gt", "lt", "ge", "le", "eq", "ne", "isnan", "isinf"), per_output(cmp=1)),
    "addcmul": per_output(mul=2, add=1),
    "lerp": per_output(mul=1, add=2),
}
