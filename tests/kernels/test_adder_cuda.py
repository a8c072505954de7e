"""The kernels for CUDA: on a GPU all of them, without one the Triton kernel in its interpreter and what is refused."""

import importlib.util

import pytest
import torch

from reparam.kernels import adder_compiled, adder_nvrtc
from reparam.kernels.adder_nvrtc import FORWARD_TILES, GRADIENT_TILES, Tile
from tests.kernels import oracle
from tests.kernels.interpreted import run_interpreted
from tests.kernels.oracle import Case
from tests.kernels.test_adder import PLAIN, WIDE, first, kinds, last, needs_cuda

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
TILES = [tile for tiles in (FORWARD_TILES, GRADIENT_TILES) for width in tiles.values() for tile in width]

#: Runs in a process of its own: Triton reads the variable when it is imported.
INTERPRETED = """
import torch
from reparam.kernels import adder_reference, adder_triton
from tests.kernels.oracle import Case
from tests.kernels.test_adder import last

case = Case(batch=1, image=(4, 3), channels=(3, 2), kernel=(2, 2), stride=(2, 1), padding=(1, 0), groups=2)
x, weight, gradient = case.tensors(torch.float32)
geometry = case.geometry(x, weight)
tile = adder_triton.Tile(16, 16)
y = adder_triton.forward(last(x), weight, geometry, tile)
torch.testing.assert_close(y, adder_reference.forward(last(x), weight, geometry))
gx = adder_triton.input_gradient(last(gradient), last(x), weight, geometry, tile)
torch.testing.assert_close(gx, adder_reference.input_gradient(last(gradient), last(x), weight, geometry))
"""


@pytest.mark.slow
@needs_triton
def test_in_the_interpreter_the_triton_kernel_is_the_reference() -> None:
    run_interpreted(INTERPRETED)


def test_without_a_gpu_nvrtc_is_not_available() -> None:
    assert not adder_nvrtc.is_available(torch.device("cpu"))


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_a_tile_is_made_of_whole_warps_and_fits_into_shared_memory(tile: Tile) -> None:
    assert tile.threads % 32 == 0
    assert tile.threads % tile.channels == 0
    assert tile.channels % (4 * tile.columns) == tile.pixels % (8 * tile.rows) == 0
    staged = tile.stages * (tile.pixels * (tile.depth + 4) + tile.depth * tile.channels)
    assert 4 * staged + 24 * tile.pixels + 4 * tile.channels <= 48 * 1024


def test_the_source_defines_all_sizes_before_it_uses_them() -> None:
    text = adder_nvrtc.source(False, Tile(64, 32, 16, 4, 8, stages=2, resident=3), 4)
    head = text[: text.index("//")].split("\n")
    assert head == [
        "#define FORWARD 0", "#define BM 64", "#define BN 32", "#define BK 16", "#define TM 4", "#define TN 8",
        "#define STAGES 2", "#define RESIDENT 3", "#define VECTOR 4", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "is_fit"), [(WIDE, True), (Case(stride=(300, 300)), False)], ids=["usual", "many-phases"]
)
def test_nvrtc_takes_sizes_that_its_grid_can_count(case: Case, is_fit: bool) -> None:
    x, weight, _ = PLAIN.tensors()
    assert adder_nvrtc.suits(case.geometry(x, weight)) == is_fit


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", ["nvrtc", "triton", "compiled"])
@kinds
def test_on_a_gpu_each_kernel_is_the_published_form(name: str, case: Case) -> None:
    if name == "triton":
        from reparam.kernels import adder_triton as kernel
    else:
        kernel = {"nvrtc": adder_nvrtc, "compiled": adder_compiled}[name]
    x, weight, gradient = case.tensors(torch.float32)
    geometry = case.geometry(x, weight)
    y = kernel.forward(last(x).cuda(), weight.cuda(), geometry)
    gx = kernel.input_gradient(last(gradient).cuda(), last(x).cuda(), weight.cuda(), geometry)
    exact = x.double(), weight.double()
    wanted = oracle.forward(*exact, case)
    assert ((first(y).cpu() - wanted).abs() <= 3e-6 * wanted.abs()).all()
    wanted = oracle.input_gradient(gradient.double(), *exact, case)
    size = oracle.input_gradient_size(gradient.double(), *exact, case) + gradient.abs().max()
    assert ((first(gx).cpu() - wanted).abs() <= 3e-6 * size).all()


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_a_nan_is_not_saturated_away() -> None:
    x, weight, gradient = WIDE.tensors(torch.float32)
    x[1, 4, 3, 5] = weight[2, 6, 1, 1] = float("nan")
    geometry = WIDE.geometry(x, weight)
    found = adder_nvrtc.input_gradient(last(gradient).cuda(), last(x).cuda(), weight.cuda(), geometry)
    gx = first(found).cpu().isnan()
    assert gx[:, 6].all()
    gx[:, 6] = False
    assert gx.nonzero().tolist() == [[1, 4, 3, 5]]
