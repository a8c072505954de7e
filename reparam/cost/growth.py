"""How a latency grows with the number of tokens: the exponent k of t = c * N**k, by least squares on the logarithms."""

import math
from collections.abc import Mapping
from statistics import linear_regression


def fitted_exponent(times: Mapping[float, float]) -> float | None:
    """Returns k, or None for fewer than two sizes.

    Args:
        times: size -> time, both above 0 and in any unit. Pixels serve as size where tokens are patches of one size.
    """
    if len(times) < 2:
        return None
    slope, _ = linear_regression([math.log(size) for size in times], [math.log(time) for time in times.values()])
    return slope
