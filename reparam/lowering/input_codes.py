"""How a layer's input becomes the codes of an integer product: n with x = n * step, step a power of two."""

from torch import Tensor, nn

from reparam.lowering.plain import PlainGrid
from reparam.ops.fixed_point import FixedPoint, grid_step

INT8 = 127


class InputCodes(nn.Module):
    """The codes of one layer's input; the product itself rounds to them, to nearest.

    A layer with a fixed-point grid keeps it. Another one has the step that covers what a calibration met, or finds one
    for each row as it comes. `step`: a float32 scalar, or None for one of each row. `largest`: code, 127 or 32767.
    """

    step: Tensor | None

    def __init__(self, activation: nn.Module, met: Tensor | None) -> None:
        super().__init__()
        grid = activation if isinstance(activation, FixedPoint) else None
        self.largest = INT8 if grid is None else grid.largest
        step = grid.step() if grid is not None else None if met is None else grid_step(met, INT8)
        self.register_buffer("step", None if step is None else step.detach().clone())
        # A product rounds to nearest, and leaves values of the grid as they are: so a floor is taken before.
        self.before = PlainGrid(grid) if grid is not None and grid.rounding == "floor" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns what is to be given to the product, with `step` and `largest`; float32."""
        given: Tensor = self.before(x.float())
        return given

    def describe(self) -> str:
        """Width and kind of step, in words."""
        return f"{self.largest.bit_length() + 1}-bit inputs, {'one step a row' if self.step is None else 'fixed step'}"
