"""The reproduced accounting against the outputs of the released code, and against a plain loop over all tilings."""

import itertools
import math

import pytest

from reparam.cost.eyeriss import Arithmetic, ArrayLayer, array_cost

#: mJ and, where it was noted, ms, that ShiftAddViT's hw_utils.py printed for layers of (tokens, inputs, outputs).
RELEASED = [
    ((196, 160, 640), "mul", 0.868, 0.502),
    ((196, 160, 640), "add", 0.466, 0.502),
    ((196, 160, 640), "shift", 0.251, 0.157),
    ((3136, 32, 256), "mul", 1.342, None),
    ((3136, 32, 256), "add", 0.605, None),
    ((3136, 32, 256), "shift", 0.393, None),
    ((196, 64, 128), "mul", 0.0766, None),
    ((196, 64, 128), "add", 0.0375, None),
    ((196, 64, 128), "shift", 0.0223, None),
]


@pytest.mark.parametrize(("sizes", "arithmetic", "millijoules", "milliseconds"), RELEASED)
def test_a_layer_costs_what_the_released_code_printed(
    sizes: tuple[int, int, int], arithmetic: Arithmetic, millijoules: float, milliseconds: float | None
) -> None:
    rows, inputs, outputs = sizes
    cost = array_cost(ArrayLayer(arithmetic=arithmetic, rows=rows, inputs=inputs, outputs=outputs))
    assert cost is not None
    assert cost.picojoules / 1e9 == pytest.approx(millijoules, rel=2e-3)
    assert milliseconds is None or cost.milliseconds == pytest.approx(milliseconds, rel=2e-3)


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def looped(layer: ArrayLayer) -> tuple[float, float]:
    """Energy and time of the best tiling of a 32-bit multiplication, tried one by one."""
    (r, s), (h, w), (e, f) = layer.kernel, layer.plane, layer.out_plane
    num_if = layer.rows * h * w * layer.inputs
    num_w, num_of = r * s * layer.inputs * layer.outputs, layer.rows * e * f * layer.outputs
    found = []
    for m3, m2, m1, n3, c2, c1, e3 in itertools.product(
        *[divisors(layer.outputs)] * 3, divisors(layer.rows), *[divisors(layer.inputs)] * 2, divisors(e)
    ):
        if layer.outputs % (m3 * m2 * m1) or layer.inputs % (c2 * c1):
            continue
        m0, n0, c0, e1 = layer.outputs // (m3 * m2 * m1), layer.rows // n3, layer.inputs // (c2 * c1), e // e3
        sram = n0 * c1 * c0 * ((e1 - 1) * layer.stride + r) * ((f - 1) * layer.stride + s) + n0 * m2 * m1 * m0 * e1 * f
        if m1 * c1 * e1 * r >= 192 or m0 > 16 or c0 * s >= 12 or m0 * c0 * s >= 960 or sram >= 65536:
            continue
        if layer.is_convolution and e1 == 1:
            continue
        dram = m3 * num_if + n3 * e3 * num_w + num_of
        buffer = m3 * m2 * num_if + max(2 * (c2 - 1), 1) * num_of
        noc = m3 * m2 * m1 * r * (e / h) * num_if + n3 * e3 * e1 * num_w
        sums = max(c2 * (c1 * r - 1), 1) * num_of
        inner = m3 * m2 * m1 * r * (e / h) * m0 * s * (f / w) * num_if + max(c2 * c1 * r * (c0 * s - 1) * 2, 1) * num_of
        words = 200 * dram + 22.2 * buffer + 7.4 * noc + 3.7 * (sums + inner) + 7.4 * n3 * e3 * e1 * f * n0 * num_w
        energy = 2 * words + 3.7 * layer.rows * e * f * layer.outputs * r * s * layer.inputs
        found.append((energy, n3 * n0 * m3 * m2 * m0 * c2 * c0 * e3 * f * s / 250e6 * 1e3))
    energies, times = zip(*found, strict=True)
    return min(
        found,
        key=lambda cost: (cost[0] - min(energies)) / max(energies) + (cost[1] - min(times)) / max(times),
    )


def test_a_strided_convolution_costs_what_a_loop_over_its_tilings_finds() -> None:
    layer = ArrayLayer(
        arithmetic="mul", rows=1, inputs=6, outputs=8, kernel=(3, 3), plane=(12, 12), out_plane=(6, 6), stride=2,
        is_convolution=True,
    )  # fmt: skip
    cost = array_cost(layer)
    assert cost is not None
    assert (cost.picojoules, cost.milliseconds) == pytest.approx(looped(layer))
    assert layer.products == 6 * 6 * 8 * 6 * 9


def test_in_8_bits_a_layer_costs_less_than_half_and_the_shift_layer_loses_most_of_its_lead() -> None:
    dense, shift = (
        ArrayLayer(arithmetic=arithmetic, rows=196, inputs=160, outputs=640) for arithmetic in ("mul", "shift")
    )
    wide, narrow, shifted = array_cost(dense), array_cost(dense, bits=8), array_cost(shift)
    assert wide is not None and narrow is not None and shifted is not None  # noqa: PT018
    assert wide.picojoules / shifted.picojoules > 3
    assert narrow.picojoules < shifted.picojoules


def test_a_layer_that_no_tiling_fits_has_no_cost() -> None:
    too_wide = ArrayLayer(
        arithmetic="mul", rows=1, inputs=1, outputs=1, kernel=(200, 200), plane=(400, 400), out_plane=(2, 2),
        is_convolution=True,
    )  # fmt: skip
    assert array_cost(too_wide) is None
    assert math.isfinite(too_wide.products)
