"""The answer of `reparam verify`, as plain data."""

from reparam.recipe.schema import Frozen


class Difference(Frozen):
    """How a tensor of B differs from that of A, over all images: `path` is the module that gives it, "" the model.

    `relative_error` is ||b - a|| / ||a||, `max_abs_error` the largest |b - a|, `correlation` Pearson's; None where a
    value is not finite, and for the correlation also where one side is constant.
    """

    path: str
    relative_error: float | None
    max_abs_error: float | None
    correlation: float | None

    def exceeds(self, tolerance: float) -> bool:
        """Whether the relative error is larger, or no number."""
        return self.relative_error is None or self.relative_error > tolerance


class Verification(Frozen):
    """Whether two models compute the same on `images` images, and the first layer, in A's order, where they part.

    `agree` is about the outputs: their relative error is within the tolerance. `first` may be there all the same.
    `before` is the layer compared before it. `layers` are all that both have, in A's order; `uncompared` those whose
    shapes differ. `top1_agreement` is the share of images, in percent, whose largest output is the same.
    """

    a: str
    b: str
    agree: bool
    images: int
    data: str
    tolerance: float
    outputs: Difference
    top1_agreement: float
    first: Difference | None
    before: Difference | None
    layers: tuple[Difference, ...]
    uncompared: tuple[str, ...] = ()
