"""The adder kernels against the published form, which unfolds patches and subtracts every pair."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.kernels import adder, adder_compiled, adder_native, adder_nvrtc, adder_reference
from tests.kernels import oracle
from tests.kernels.oracle import Case, cases

needs_native = pytest.mark.skipif(not adder_native.is_available(), reason="needs a C++ compiler with OpenMP")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PLAIN = Case(channels=(4, 6), padding=(1, 1))
WIDE = Case(batch=3, image=(7, 9), channels=(19, 37), padding=(1, 1))
STRIDED = Case(image=(8, 9), channels=(18, 33), kernel=(3, 2), stride=(2, 3), padding=(1, 0))
GROUPED = Case(channels=(5, 3), kernel=(2, 3), padding=(2, 1), dilation=(1, 2), groups=3)
DEPTHWISE = Case(channels=(1, 1), padding=(1, 1), groups=7)
SPARSE = Case(image=(9, 9), channels=(3, 5), kernel=(1, 2), stride=(3, 3))  # most pixels are read by nothing
KINDS = {
    "plain": PLAIN,
    "wide": WIDE,
    "strided": STRIDED,
    "grouped": GROUPED,
    "depthwise": DEPTHWISE,
    "sparse": SPARSE,
}
kinds = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def run(kernel: ModuleType, x: Tensor, weight: Tensor, gradient: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """Y and gX by a backend, channels first."""
    geometry = case.geometry(x, weight)
    y = kernel.forward(last(x), weight, geometry)
    return first(y), first(kernel.input_gradient(last(gradient), last(x), weight, geometry))


def assert_agrees(kernel: ModuleType, case: Case, dtype: torch.dtype, *, tolerance: float) -> None:
    """Errors in units of the sums' sizes: in Y nothing cancels, in gX something may."""
    x, weight, gradient = case.tensors(dtype)
    y, gx = run(kernel, x, weight, gradient, case)
    assert y.dtype == gx.dtype == dtype
    exact = x.double(), weight.double()
    wanted = oracle.forward(*exact, case)
    assert y.shape == wanted.shape
    assert ((y - wanted).abs() <= tolerance * wanted.abs()).all()
    wanted = oracle.input_gradient(gradient.double(), *exact, case)
    assert gx.shape == wanted.shape
    size = oracle.input_gradient_size(gradient.double(), *exact, case)
    assert ((gx - wanted).abs() <= tolerance * (size + gradient.abs().max())).all()


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_reference_is_the_published_form_in_double_precision(case: Case) -> None:
    assert_agrees(adder_reference, case, torch.float64, tolerance=1e-13)


@needs_native
@settings(max_examples=80, deadline=None)
@given(cases())
def test_the_native_kernel_is_the_published_form(case: Case) -> None:
    assert_agrees(adder_native, case, torch.float32, tolerance=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", [PLAIN, WIDE, STRIDED, GROUPED, DEPTHWISE], ids=list(KINDS)[:5])
def test_the_compiled_kernel_is_the_published_form(case: Case) -> None:
    assert_agrees(adder_compiled, case, torch.float32, tolerance=3e-6)


@needs_native
@pytest.mark.parametrize("written", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 65])
def test_channels_need_not_fill_vectors(written: int) -> None:
    assert_agrees(adder_native, Case(channels=(3, written)), torch.float32, tolerance=3e-6)
    assert_agrees(adder_native, Case(channels=(written, 3)), torch.float32, tolerance=3e-6)


@needs_native
@pytest.mark.parametrize("pixels", [1, 2, 5, 6, 7, 95, 96, 97, 193])
def test_pixels_need_not_fill_tiles_or_chunks(pixels: int) -> None:
    case = Case(batch=1, image=(1, pixels), channels=(3, 20), kernel=(1, 1))
    assert_agrees(adder_native, case, torch.float32, tolerance=3e-6)


class Largest(TorchDispatchMode):
    """Records the bytes of the largest result of a subtraction, and how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.steps = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.sub.Tensor:
            self.bytes, self.steps = max(self.bytes, out.nbytes), self.steps + 1
        return out


@kinds
@pytest.mark.parametrize("pixels", [1, 4, 7])
def test_the_reference_keeps_its_differences_below_the_cap(
    case: Case, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = case.tensors()
    whole = run(adder_reference, *tensors, case)
    each = case.groups * case.channels[0] * case.channels[1] * 8
    monkeypatch.setattr(adder_reference, "MEMORY_CAP", pixels * each + each // 2)
    with Largest() as largest:
        chunked = run(adder_reference, *tensors, case)
    assert torch.equal(chunked[0], whole[0])
    assert torch.equal(chunked[1], whole[1])
    read = case.batch * case.output[0] * case.output[1]
    assert largest.bytes == min(pixels, read) * each <= adder_reference.MEMORY_CAP
    assert largest.steps == 2 * case.kernel[0] * case.kernel[1] * -(-read // pixels)


def test_the_reference_does_one_pixel_at_a_time_where_not_even_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adder_reference, "MEMORY_CAP", 1)
    assert_agrees(adder_reference, PLAIN, torch.float64, tolerance=1e-13)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "kernel", [pytest.param(adder_native, marks=needs_native), adder_reference], ids=["native", "reference"]
)
@kinds
def test_bits_depend_neither_on_the_number_of_threads_nor_on_chance(kernel: ModuleType, case: Case) -> None:
    tensors = case.tensors(torch.float32)
    results = []
    for number in (1, 2, 3, 2):
        torch.set_num_threads(number)
        results.append(run(kernel, *tensors, case))
    for y, gx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(gx, results[0][1])


backends = pytest.mark.parametrize(
    "kernel",
    [pytest.param(adder_native, marks=needs_native), adder_reference, adder_compiled],
    ids=["native", "reference", "compiled"],
)


@backends
def test_a_nan_reaches_all_outputs_that_read_it_and_its_own_gradient(kernel: ModuleType) -> None:
    x, weight, gradient = WIDE.tensors(torch.float32)
    clean = run(kernel, x, weight, gradient, WIDE)
    x[1, 4, 3, 5] = float("nan")
    y, gx = run(kernel, x, weight, gradient, WIDE)
    assert torch.equal(y.isnan(), oracle.forward(x, weight, WIDE).isnan())
    assert y.isnan().sum() == 9 * len(weight)
    assert gx.isnan().nonzero().tolist() == [[1, 4, 3, 5]]
    torch.testing.assert_close(y[~y.isnan()], clean[0][~y.isnan()])
    torch.testing.assert_close(gx[~gx.isnan()], clean[1][~gx.isnan()])


@backends
@pytest.mark.parametrize("infinity", [float("inf"), -float("inf")], ids=["plus", "minus"])
def test_an_infinity_reaches_all_outputs_that_read_it_and_no_other_gradient(
    kernel: ModuleType, infinity: float
) -> None:
    x, weight, gradient = WIDE.tensors(torch.float32)
    clean = run(kernel, x, weight, gradient, WIDE)
    x[1, 4, 3, 5] = infinity
    y, gx = run(kernel, x, weight, gradient, WIDE)
    is_infinite = oracle.forward(x, weight, WIDE).isinf()
    assert (y[is_infinite] == -float("inf")).all()
    torch.testing.assert_close(y[~is_infinite], clean[0][~is_infinite])
    # Its own is the clipped difference, or NaN from the native kernel, which clamps between x - 1 and x + 1.
    own = oracle.input_gradient(gradient, x, weight, WIDE)[1, 4, 3, 5]
    assert gx[1, 4, 3, 5].isnan() or torch.isclose(gx[1, 4, 3, 5], own)
    gx[1, 4, 3, 5] = clean[1][1, 4, 3, 5]
    torch.testing.assert_close(gx, clean[1])


@backends
def test_a_nan_weight_and_a_nan_gradient_are_not_clipped_away(kernel: ModuleType) -> None:
    x, weight, gradient = WIDE.tensors(torch.float32)
    weight[2, 4, 1, 1] = float("nan")
    y, gx = run(kernel, x, weight, gradient, WIDE)
    assert y.isnan().all((0, 2, 3)).nonzero().tolist() == [[2]]
    assert gx.isnan().all((0, 2, 3)).nonzero().tolist() == [[4]]
    x, weight, gradient = WIDE.tensors(torch.float32)
    gradient[0, 0, 3, 3] = float("nan")
    assert torch.equal(
        run(kernel, x, weight, gradient, WIDE)[1].isnan(), oracle.input_gradient(gradient, x, weight, WIDE).isnan()
    )


@backends
def test_clipping_is_at_one_on_both_sides(kernel: ModuleType) -> None:
    case = Case(batch=1, image=(1, 1), channels=(7, 2), kernel=(1, 1))
    x = torch.tensor([-3.0, -1.5, -1.0, 0.0, 0.25, 1.0, 3.0]).view(1, 7, 1, 1)
    weight = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 7, 1, 1).contiguous()
    gradient = torch.tensor([2.0, 10.0]).view(1, 2, 1, 1)
    y, gx = run(kernel, x, weight, gradient, case)
    assert y.flatten().tolist() == [-9.75, -10.75]
    assert gx.flatten().tolist() == [12.0, 12.0, 12.0, 5.0, 2.0, -7.0, -12.0]


@backends
def test_an_empty_batch_gives_empty_results(kernel: ModuleType) -> None:
    case = Case(batch=0, padding=(1, 1))
    y, gx = run(kernel, *case.tensors(torch.float32), case)
    assert y.shape == (0, 6, 6, 5)
    assert gx.shape == (0, 4, 6, 5)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_operators_keep_torchs_contracts(case: Case, dtype: torch.dtype) -> None:
    x, weight, gradient = case.tensors(dtype)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(adder.adder_forward, (last(x), weight, *case.sizes), test_utils=tests)
    torch.library.opcheck(adder.adder_input_gradient, (last(gradient), last(x), weight, *case.sizes), test_utils=tests)


@kinds
def test_fake_tensors_have_the_real_shapes_types_and_strides(case: Case) -> None:
    x, weight, gradient = case.tensors(torch.float32)
    y = adder.adder_forward(last(x), weight, *case.sizes)
    gx = adder.adder_input_gradient(last(gradient), last(x), weight, *case.sizes)
    reals = last(x), weight, last(gradient)
    with FakeTensorMode() as mode:
        images, weights, given = (mode.from_tensor(real) for real in reals)
        fakes = (
            adder.adder_forward(images, weights, *case.sizes),
            adder.adder_input_gradient(given, images, weights, *case.sizes),
        )
    for real, fake in zip((y, gx), fakes, strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
        assert real.is_contiguous()


@needs_native
@pytest.mark.parametrize(
    ("case", "dtype", "is_native"),
    [
        (PLAIN, torch.float32, True),
        (GROUPED, torch.float32, True),
        (PLAIN, torch.float64, False),
        (DEPTHWISE, torch.float32, False),
        (Case(channels=(1, 8)), torch.float32, False),
        (Case(channels=(8, 1)), torch.float32, False),
    ],
    ids=["float32", "groups", "float64", "depthwise", "one-input", "one-output"],
)
def test_on_a_cpu_the_native_kernel_takes_float32_with_channels_to_fill_its_vectors(
    case: Case, dtype: torch.dtype, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, gradient = case.tensors(dtype)
    assert adder._suits_native(last(x), case.geometry(x, weight)) == is_native
    used = []
    for kernel in (adder_native, adder_reference, adder_compiled):
        for name in ("forward", "input_gradient"):
            monkeypatch.setattr(kernel, name, recorded(kernel, name, used))
    adder.adder_forward(last(x), weight, *case.sizes)
    adder.adder_input_gradient(last(gradient), last(x), weight, *case.sizes)
    name = "adder_native" if is_native else "adder_reference"
    assert used == [f"{name}.forward", f"{name}.input_gradient"]


def recorded(kernel: ModuleType, name: str, used: list[str]) -> Any:
    function = getattr(kernel, name)

    def call(*args: Any) -> Any:
        used.append(f"{kernel.__name__.rpartition('.')[2]}.{name}")
        return function(*args)

    return call


def test_without_a_compiler_the_reference_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adder_native, "is_available", lambda: False)
    x, weight, _ = PLAIN.tensors(torch.float32)
    assert not adder._suits_native(last(x), PLAIN.geometry(x, weight))
    y = adder.adder_forward(last(x), weight, *PLAIN.sizes)
    assert torch.equal(y, adder_reference.forward(last(x), weight, PLAIN.geometry(x, weight)))


@pytest.mark.gpu
@needs_cuda
@kinds
def test_on_a_gpu_the_operators_are_the_published_form(case: Case) -> None:
    x, weight, gradient = case.tensors(torch.float32)
    y = adder.adder_forward(last(x).cuda(), weight.cuda(), *case.sizes)
    gx = adder.adder_input_gradient(last(gradient).cuda(), last(x).cuda(), weight.cuda(), *case.sizes)
    torch.testing.assert_close(first(y).cpu(), oracle.forward(x, weight, case))
    torch.testing.assert_close(first(gx).cpu(), oracle.input_gradient(gradient, x, weight, case), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("has_nvrtc", "has_triton", "wanted"),
    [
        (True, True, "adder_nvrtc"),
        (False, True, "adder_triton"),
        (False, False, "adder_compiled"),
    ],
    ids=["nvrtc", "triton", "neither"],
)
def test_on_a_gpu_the_fastest_kernel_that_can_be_had_takes_float32(
    has_nvrtc: bool, has_triton: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adder_nvrtc, "is_available", lambda device: has_nvrtc)
    monkeypatch.setattr(adder, "_triton", lambda: ModuleType("adder_triton") if has_triton else None)
    x, weight, _ = PLAIN.tensors(torch.float32)
    found = adder._cuda_kernel(last(x), PLAIN.geometry(x, weight))
    assert found.__name__.rpartition(".")[2] == wanted


@pytest.mark.parametrize(
    ("case", "dtype"), [(PLAIN, torch.float64), (DEPTHWISE, torch.float32)], ids=["float64", "depthwise"]
)
def test_on_a_gpu_the_compiled_kernel_takes_what_tiles_do_not_suit(case: Case, dtype: torch.dtype) -> None:
    x, weight, _ = case.tensors(dtype)
    assert adder._cuda_kernel(last(x), case.geometry(x, weight)) is adder_compiled
