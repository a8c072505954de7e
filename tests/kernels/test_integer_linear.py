"""Integer matrix products: every backend against exact Python numbers, bit for bit."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam.errors import ReparamError
from reparam.kernels import integer_operands, integer_reference
from reparam.kernels.integer_linear import grouped_integer_linear, integer_linear, integer_matmul, pack_weight
from reparam.kernels.integer_weight import unpack_weight
from tests.kernels import integer_oracle
from tests.kernels.integer_oracle import BACKENDS, using

backends = pytest.mark.parametrize("backend", BACKENDS)
NAN, INF = float("nan"), float("inf")
STATIC = torch.tensor(2.0**-5)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weights(outputs: int, inputs: int, seed: int = 0, largest: int = 16384) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, (outputs, inputs), generator=generator, dtype=torch.int16)


def codes(rows: int, inputs: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (rows, inputs), generator=generator, dtype=torch.int8)


def tokens(rows: int, inputs: int, seed: int = 2) -> Tensor:
    """Rows of many sizes, with a few values that lie halfway between codes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator) * torch.randn(rows, 1, generator=generator).mul(4).exp()
    return torch.where(torch.rand(rows, inputs, generator=generator) < 0.2, (x * 64).round() / 64, x)


def floats(outputs: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A scale and a bias."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, generator=generator), torch.randn(outputs, generator=generator)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, but for those of NaNs."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


sizes = st.tuples(st.integers(0, 70), st.integers(1, 70), st.integers(1, 70))
#: Of weights: those that are packed as bytes, and those that are not.
magnitudes = st.sampled_from([64, 65, 32767])


@settings(max_examples=25, deadline=None)
@given(sizes, magnitudes, st.sampled_from(BACKENDS), st.integers(0, 2**20))
def test_a_product_is_that_of_integers(size: tuple[int, int, int], most: int, backend: str, seed: int) -> None:
    rows, inputs, outputs = size
    x, weight = codes(rows, inputs, seed), weights(outputs, inputs, seed, most)
    with using(backend):
        y = integer_matmul(x, pack_weight(weight), outputs)
    assert y.dtype == torch.int32
    assert torch.equal(y.long(), x.long() @ weight.long().T)


@settings(max_examples=25, deadline=None)
@given(sizes, st.sampled_from([64, 700]), st.sampled_from([127, 32767]), st.sampled_from(BACKENDS), st.data())
def test_a_layer_is_rounded_as_promised(
    size: tuple[int, int, int], most: int, largest: int, backend: str, data: st.DataObject
) -> None:
    (rows, inputs, outputs), seed = size, data.draw(st.integers(0, 2**20))
    x, weight, (scale, bias) = tokens(rows, inputs, seed), weights(outputs, inputs, seed, most), floats(outputs, seed)
    step = data.draw(st.sampled_from([None, STATIC, STATIC / 256]))
    given = (scale, data.draw(st.sampled_from([None, bias])), step, largest)
    with using(backend):
        y = integer_linear(x, pack_weight(weight, largest=largest), *given)
    assert same(y, integer_oracle.linear(x, weight, *given))


@backends
def test_rows_and_outputs_need_not_fill_tiles(backend: str) -> None:
    with using(backend):
        for rows in (1, 2, 5, 6, 7, 11, 12, 13, 47, 48, 49, 97):
            for outputs in (1, 15, 16, 17, 33, 64):
                for most in (64, 32767):
                    x, weight = codes(rows, 9), weights(outputs, 9, 0, most)
                    y = integer_matmul(x, pack_weight(weight), outputs)
                    assert torch.equal(y.long(), x.long() @ weight.long().T)


@backends
def test_sums_may_reach_the_ends_of_32_bits(backend: str) -> None:
    # 512 * 128 * 32768 = 2**31: the least sum fits, and so does the greatest that is one product less.
    inputs = 512
    x = torch.full((2, inputs), -128, dtype=torch.int8)
    weight = torch.full((2, inputs), 32767, dtype=torch.int16)
    weight[1] = -32768
    x[1, 0] = 0
    with using(backend):
        y = integer_matmul(x, pack_weight(weight), 2)
    assert y.tolist()[0][0] == -inputs * 128 * 32767
    assert y.tolist()[1] == [-(inputs - 1) * 128 * 32767, (inputs - 1) * 128 * 32768]
    exact = torch.full((1, inputs), -32768, dtype=torch.int16)
    exact[0, ::2] = 32767
    exact[0, 0] = -32768
    with using(backend):
        y = integer_matmul(x[:1], pack_weight(exact), 1)
    assert y.item() == -128 * int(exact.long().sum())


@backends
@pytest.mark.parametrize("most", [64, -64, 65, -65])
@pytest.mark.parametrize("code", [127, -128])
def test_only_weights_that_cannot_saturate_are_bytes(backend: str, most: int, code: int) -> None:
    x, weight = torch.full((7, 66), code, dtype=torch.int8), torch.full((17, 66), most, dtype=torch.int16)
    packed = pack_weight(weight)
    assert packed.dtype == (torch.int8 if abs(most) == 64 else torch.int16)
    with using(backend):
        assert (integer_matmul(x, packed, 17) == 66 * code * most).all()


@backends
def test_partial_sums_may_leave_32_bits_where_the_whole_does_not(backend: str) -> None:
    x = torch.full((3, 2048), -128, dtype=torch.int8)
    weight = torch.full((1, 2048), 32767, dtype=torch.int16)
    weight[:, 1024:] = -32767
    weight[0, -1] += 5
    with using(backend):
        assert integer_matmul(x, pack_weight(weight), 1).tolist() == [[-640]] * 3


@backends
@pytest.mark.parametrize("largest", [127.0, 127.00001, 63.5, 1.0, 1.984375, 1.9843751, 3.0e-39, 1e-45, 3.3e38, 0.0])
def test_a_rows_own_step_is_the_smallest_that_reaches_it(backend: str, largest: float) -> None:
    x = torch.tensor([[largest, -largest / 3, 0.0]])
    one, weight = torch.ones(3), torch.eye(3, dtype=torch.int16)
    with using(backend):
        y = integer_linear(x, pack_weight(weight), one, None, None)
    assert same(y, integer_oracle.linear(x, weight, one, None, None))
    assert not largest > 1e-30 or abs(y[0, 0].item() - largest) <= largest / 120


@backends
@pytest.mark.parametrize("value", [32767.0, 32767.5, 1.0, 1.9999389, 1.999939, 3e-39])
def test_wide_codes_have_finer_steps(backend: str, value: float) -> None:
    x, one, weight = torch.tensor([[value, -value / 3]]), torch.ones(2), torch.eye(2, dtype=torch.int16)
    with using(backend):
        y = integer_linear(x, pack_weight(weight, largest=32767), one, None, None, 32767)
    assert same(y, integer_oracle.linear(x, weight, one, None, None, 32767))


@backends
def test_products_of_the_widest_codes_are_exact(backend: str) -> None:
    x, weight = torch.full((3, 2), -40000.0), torch.full((1, 2), 32767, dtype=torch.int16)
    with using(backend):
        y = integer_linear(x, pack_weight(weight, largest=32767), torch.ones(1), None, torch.ones(1), 32767)
    assert (y == torch.tensor(-2.0 * 32768 * 32767)).all()


@backends
def test_a_given_step_saturates_at_its_codes_ends(backend: str) -> None:
    x = torch.tensor([[3.98, 4.0, 1e9, INF, -4.0, -4.1, -1e38, -INF, 0.015625, 0.046875]])
    weight, one = torch.eye(10, dtype=torch.int16), torch.ones(10)
    with using(backend):
        y = integer_linear(x, pack_weight(weight), one, None, STATIC)
    assert (y * 32).tolist() == [[127, 127, 127, 127, -128, -128, -128, -128, 0, 2]]


@backends
@pytest.mark.parametrize("step", [STATIC, None], ids=["static", "dynamic"])
def test_a_row_with_a_nan_gives_nan_and_its_neighbours_do_not(backend: str, step: Tensor | None) -> None:
    x, weight, (scale, bias) = tokens(50, 20), weights(18, 20), floats(18)
    clean = integer_oracle.linear(x, weight, scale, bias, step)
    x[7, 3], x[49, 19], x[0, 0] = NAN, -NAN, NAN
    with using(backend):
        y = integer_linear(x, pack_weight(weight), scale, bias, step)
    lost = torch.zeros(50, dtype=torch.bool)
    lost[[0, 7, 49]] = True
    assert y[lost].isnan().all()
    assert torch.equal(y[~lost], clean[~lost])


@backends
def test_an_infinity_has_no_step_of_its_own(backend: str) -> None:
    x, weight, (scale, _) = tokens(3, 20), weights(4, 20), floats(4)
    x[1, 5], x[2, 6] = INF, -INF
    with using(backend):
        y = integer_linear(x, pack_weight(weight), scale, None, None)
    assert y.isnan().all(dim=1).tolist() == [False, True, True]


@backends
@pytest.mark.parametrize("first", [0, 1, 30, 52, 53])
@pytest.mark.parametrize("steps", [None, STATIC, torch.tensor([2.0**-5, 2.0**-7])], ids=["dynamic", "one", "two"])
def test_sorted_tokens_take_the_weight_of_their_expert(backend: str, first: int, steps: Tensor | None) -> None:
    x, pair = tokens(53, 21), torch.stack([weights(19, 21, 0), weights(19, 21, 5)])
    scales, biases = (torch.stack(both) for both in zip(floats(19, 0), floats(19, 5), strict=True))
    with using(backend):
        y = grouped_integer_linear(x, pack_weight(pair), scales, biases, torch.tensor([first]), steps)
    own = [None, None] if steps is None else steps.expand(2).unbind()
    for expert, rows in enumerate((slice(0, first), slice(first, None))):
        wanted = integer_oracle.linear(x[rows], pair[expert], scales[expert], biases[expert], own[expert])
        assert same(y[rows], wanted)


def test_inputs_need_not_be_contiguous() -> None:
    x, weight, (scale, bias) = tokens(9, 14), weights(6, 7), floats(12)
    y = integer_linear(x[:, ::2], pack_weight(weight), scale[::2], bias[::2], None)
    assert same(y, integer_oracle.linear(x[:, ::2], weight, scale[::2], bias[::2], None))


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_number_of_threads_changes_nothing(threads: None, rows: int) -> None:
    x, weight, (scale, bias) = tokens(rows, 40), weights(70, 40), floats(70)
    results = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        results.append(integer_linear(x, pack_weight(weight), scale, bias, None))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_packing_loses_nothing_and_pads_with_zeros() -> None:
    weight = weights(3 * 17, 5).view(3, 17, 5)
    packed = pack_weight(weight)
    assert packed.shape == (3, 2, 3, 16, 2)
    assert packed.is_contiguous()
    assert torch.equal(unpack_weight(packed, 17, 5), weight)
    small = weight % 129 - 64
    packed_small = pack_weight(small)
    assert packed_small.shape == (3, 2, 1 + 2, 16, 4)
    assert packed_small.is_contiguous()
    assert torch.equal(unpack_weight(packed_small, 17, 5), small.to(torch.int8))
    assert pack_weight(small, largest=32767).dtype == torch.int16
    assert pack_weight(torch.tensor([[-32768, 0]], dtype=torch.int16)).dtype == torch.int16
    assert torch.equal(packed.long().abs().sum(), weight.long().abs().sum())
    assert packed[1, 1, 2, 0].tolist() == [weight[1, 16, 4], 0]


@pytest.mark.parametrize("outputs", [33, 16])
def test_a_weight_of_other_sizes_is_refused(outputs: int) -> None:
    packed = pack_weight(weights(17, 6))
    for call in (
        lambda: integer_matmul(codes(2, 6), packed, outputs),
        lambda: integer_linear(tokens(2, 6), packed, torch.ones(outputs), None, None),
        lambda: integer_linear(tokens(2, 8), packed, torch.ones(17), None, None),
        lambda: integer_linear(tokens(2, 6), packed.int(), torch.ones(17), None, None),
        lambda: integer_linear(tokens(2, 6), pack_weight(weights(17, 6, 0, 9)), torch.ones(17), None, None, 32767),
    ):
        with pytest.raises(
            ReparamError, match=r"the packed weight must be torch.int16 of shape .* make it with pack_weight"
        ):
            call()


def test_activations_of_other_types_are_refused() -> None:
    with pytest.raises(ReparamError, match=r"take float32, not torch\.float16"):
        integer_linear(tokens(2, 6).half(), pack_weight(weights(17, 6)), torch.ones(17), None, None)
    with pytest.raises(ReparamError, match=r"codes in int8, not torch\.float32"):  # four of whose bytes are no codes
        integer_matmul(tokens(2, 6), pack_weight(weights(17, 6)), 17)


def test_a_scale_or_bias_of_another_type_size_or_device_is_refused() -> None:
    x, packed, (scale, bias) = tokens(2, 6), pack_weight(weights(17, 6)), floats(17)
    for others in ((scale.double(), bias, None), (scale, bias.bfloat16(), None), (scale, bias, STATIC.half())):
        with pytest.raises(ReparamError, match="lower the model again instead of converting its lowered form"):
            integer_linear(x, packed, *others)
    with pytest.raises(ReparamError, match=r"the bias has the shape \(3,\), and the scale \(17,\)"):
        integer_linear(x, packed, scale, bias[:3], None)
    with pytest.raises(ReparamError, match="an integer layer is on meta and its input on cpu"):
        integer_operands.require_float32(x, packed.to("meta"), scale, bias, None)


def test_the_operators_keep_torchs_contract() -> None:
    packed, (scale, bias) = pack_weight(weights(5, 7)), floats(5)
    pair = packed.expand(2, *packed.shape).contiguous()
    torch.library.opcheck(integer_matmul, (codes(3, 7), packed, 5))
    for step in (None, STATIC):
        torch.library.opcheck(integer_linear, (tokens(3, 7), packed, scale, bias, step))
        both, first = (scale.expand(2, 5), bias.expand(2, 5)), torch.tensor([1])
        torch.library.opcheck(grouped_integer_linear, (tokens(3, 7), pair, *both, first, step))


class Layer(torch.nn.Module):
    """A lowered layer in small."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", pack_weight(weights(5, 7)))
        self.register_buffer("scale", floats(5)[0])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(integer_linear(x * 2, self.packed, self.scale, None, None))


def test_a_compiler_and_an_exporter_keep_the_bits() -> None:
    layer, x = Layer(), tokens(3, 7)
    wanted = layer(x)
    assert same(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), wanted)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: rows}})
    assert "reparam.integer_linear" in str(exported.graph)
    assert same(exported.module()(tokens(6, 7)), layer(tokens(6, 7)))


def test_the_sums_of_the_reference_are_exact_where_floats_of_32_bits_are_not() -> None:
    x, weight = torch.full((1, 1000), 127, dtype=torch.int8), torch.full((1, 1000), 16383, dtype=torch.int16)
    assert integer_reference.matmul(x, weight).item() == 127 * 1000 * 16383
    assert torch.tensor(127.0 * 1000 * 16383).item() != 127 * 1000 * 16383
