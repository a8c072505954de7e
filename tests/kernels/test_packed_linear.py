"""Products with packed powers of two: every code, the layout of the words, and the Triton kernel in its interpreter."""

import importlib.util

import pytest
import torch
from torch import Tensor

from reparam.errors import ReparamError
from reparam.kernels import packed_reference
from reparam.kernels.packed_linear import MOST_ROWS, packed_linear
from tests.kernels.interpreted import run_interpreted
from tests.kernels.packed_oracle import operands, pack, value, wanted
from tests.kernels.test_adder import needs_cuda

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

#: Runs in a process of its own: Triton reads the variable when it is imported. numpy has no bfloat16 to multiply in, so
#: products are in float32, of numbers that are bfloat16's.
INTERPRETED = """
import torch
from torch import nn
from reparam.kernels import packed_linear as operator, packed_triton
from reparam.kernels.packed_triton import Tile
from reparam.lowering.base import LoweringSettings
from reparam.lowering.cuda import Cuda
from reparam.lowering.lower import lowered_copy
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from tests.kernels.packed_oracle import operands, wanted

few, many = (Tile(rows=2, outputs=4, words=8, dot=False), Tile(rows=2, outputs=4, words=8, dot=True))
for bits, rows, inputs, outputs, splits, tile in [
    (4, 1, 1, 1, 1, few),
    (4, 3, 129, 5, 1, few),
    (4, 3, 129, 5, 3, many),
    (4, 2, 64, 4, 1, many),
    (8, 3, 65, 7, 2, few),
    (8, 4, 31, 3, 1, many),
]:
    x, words, scale, bias, exact = operands(bits, rows, inputs, outputs)
    assert torch.equal(packed_triton.weight(words, scale, inputs, bits).double(), exact)
    for offset in (None, bias):
        y = packed_triton.linear(x.float(), words, scale, offset, bits, tile, splits)
        want, size = wanted(x, exact, offset)
        assert ((y - want).abs() <= 2.0**-21 * size).all(), (bits, rows, inputs, outputs, splits)
x, words, scale, bias, exact = operands(4, 3, 40, 5)
x[1, 7], x[2, 9] = float("nan"), float("inf")
y = packed_triton.linear(x.float(), words, scale, bias, 4, few)
assert torch.equal(y[0], packed_triton.linear(x[:1].float(), words, scale, bias, 4, few)[0])
assert y[1].isnan().all() and not y[2].isfinite().any()
assert packed_triton.linear(x[:0].float(), words, scale, bias, 4).shape == (0, 5)

Cuda.refuse = lambda self, device: None
model = nn.Sequential(*(ShiftLinear(torch.randn(9, 9), torch.randn(9), ShiftOptions(bits=bits)) for bits in (4, 5)))
lowered, x = lowered_copy(model.eval(), "cuda", LoweringSettings())[0], torch.randn(3, 9)
want = lowered(x)
calls = []
operator._linear = lambda *operands: calls.append(operands) or packed_triton.linear(*operands, few)
assert (lowered(x) - want).norm() < 0.02 * want.norm()
assert len(calls) == 2
"""


@pytest.mark.slow
@needs_triton
def test_in_the_interpreter_the_triton_kernel_is_the_exact_product_rounded_once() -> None:
    run_interpreted(INTERPRETED)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("exponent", [-60, 0, 60])
def test_every_code_is_its_power_of_two(bits: int, exponent: int) -> None:
    codes = torch.arange(1 << bits)
    found = packed_reference.weight(pack(codes[None], bits), torch.tensor([2.0**exponent]), len(codes), bits)
    assert found.dtype == torch.bfloat16
    assert found[0].tolist() == [value(code, bits) * 2.0**exponent for code in codes.tolist()]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("bits", "inputs"), [(4, 1), (4, 63), (4, 64), (4, 65), (8, 31), (8, 33)])
def test_a_product_is_the_exact_one_rounded_once(bits: int, inputs: int, rows: int) -> None:
    x, words, scale, bias, exact = operands(bits, rows, inputs, outputs=3)
    y = packed_linear(x, words, scale, bias, inputs, bits)
    want, size = wanted(x, exact, bias)
    assert y.dtype == torch.bfloat16
    assert ((y - want).abs() <= 2.0**-8 * want.abs() + 2.0**-21 * size).all()


def test_further_axes_of_the_input_stay() -> None:
    x, words, scale, bias, _ = operands(4, 6, 20, 3)
    y = packed_linear(x.view(2, 3, 20), words, scale, bias, 20, 4)
    assert torch.equal(y, packed_linear(x, words, scale, bias, 20, 4).view(2, 3, 3))


@pytest.mark.slow
def test_a_compiler_sees_one_operator_for_any_number_of_rows() -> None:
    x, words, scale, bias, _ = operands(4, 4, 20, 3)

    def run(x: Tensor) -> Tensor:
        return packed_linear(2 * x, words, scale, bias, 20, 4) + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 3):
        assert torch.equal(compiled(x[:rows]), run(x[:rows]))


def test_operands_that_do_not_fit_are_refused() -> None:
    x, words, scale, bias, _ = operands(4, 4, 20, 3)
    for wrong in [
        (x.float(), words, scale, bias, 20, 4),
        (x, words, scale, bias, 21, 4),
        (x, words[:, 1:], scale, bias, 20, 4),
        (x, words.long(), scale, bias, 20, 4),
        (x, words, scale, bias, 20, 5),
    ]:
        with pytest.raises(ReparamError, match=r"wanted x \(\.\.\., 2[01]\) bfloat16 and words"):
            packed_linear(*wrong)


@needs_triton
def test_a_tile_is_as_wide_as_its_units_want_and_the_last_takes_any_number_of_rows() -> None:
    from reparam.kernels.packed_triton import TILES, chosen

    assert list(TILES) == sorted(TILES)
    for most, tile in TILES.items():
        assert tile.rows == most
        assert min(tile.rows, tile.outputs, tile.words) >= 16 or not tile.dot
    assert [chosen(rows).rows for rows in (1, 2, 16, 17, 33, 1000)] == [1, 16, 16, 32, 64, 64]


@needs_triton
@pytest.mark.parametrize(("capability", "rows"), [(80, 64), (90, 1)])
def test_without_a_gpu_the_kernel_compiles_for_one_and_fits_into_the_smallest_shared_memory(
    capability: int, rows: int
) -> None:
    from reparam.kernels.packed_triton import TILES, compiled_for

    kernel = compiled_for(capability, 4, TILES[rows])
    assert ("mma" in kernel.asm["ptx"]) == TILES[rows].dot
    assert kernel.metadata.shared <= 99 * 1024  # of a GPU with capability 8.6 or 8.9


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 17, 64, 197, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(192, 768), (768, 192), (77, 41)])
def test_on_a_gpu_each_kernel_is_the_exact_product_rounded_once(
    bits: int, rows: int, inputs: int, outputs: int
) -> None:
    x, words, scale, bias, exact = operands(bits, rows, inputs, outputs)
    y = packed_linear(x.cuda(), words.cuda(), scale.cuda(), bias.cuda().bfloat16(), inputs, bits).cpu()
    want, size = wanted(x, exact, bias.bfloat16())
    of_sums = 2.0**-19 if rows <= MOST_ROWS else 2.0**-9  # cuBLAS may add up parts in bfloat16
    assert ((y - want).abs() <= 2.0**-8 * want.abs() + of_sums * size).all()


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize("rows", [1, 197, MOST_ROWS + 1])
def test_on_a_gpu_calls_are_captured_in_a_graph(rows: int) -> None:
    x, words, scale, bias = (tensor.cuda() for tensor in operands(4, rows, 192, 96)[:4])
    rest = words, scale, bias.bfloat16(), 192, 4
    eager = packed_linear(x, *rest)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = packed_linear(x, *rest)
    graph.replay()
    assert torch.equal(captured, eager)
