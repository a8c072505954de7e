"""Integer adders: every backend against differences of integers one by one, bit for bit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reparam.errors import ReparamError
from reparam.kernels.integer_adder import integer_adder, pack_adder_weight
from reparam.kernels.integer_weight import unpack_adder_weight
from tests.kernels import integer_oracle
from tests.kernels.integer_oracle import BACKENDS, using
from tests.kernels.oracle import Case, cases

backends = pytest.mark.parametrize("backend", BACKENDS)
STEP = torch.tensor(2.0**-5)
PLAIN = Case(channels=(4, 6), padding=(1, 1))
KINDS = {
    "plain": PLAIN,
    "wide": Case(batch=3, image=(7, 9), channels=(19, 37), padding=(1, 1)),
    "strided": Case(image=(8, 9), channels=(18, 33), kernel=(3, 2), stride=(2, 3), padding=(1, 0)),
    "grouped": Case(channels=(5, 3), kernel=(2, 3), padding=(2, 1), dilation=(1, 2), groups=3),
    "pointwise": Case(channels=(33, 17), kernel=(1, 1)),
    "depthwise": Case(channels=(1, 1), padding=(1, 1), groups=37),
}
kinds = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)

Given = tuple[Tensor, Tensor, Tensor, Tensor]


def tensors(case: Case) -> Given:
    """Codes channels last, codes of the weight, a scale and a bias."""
    x, weight, _ = case.tensors(torch.float32)
    generator = torch.Generator().manual_seed(case.seed)
    codes, values = ((t * 60).round().clamp(-128, 127).to(torch.int8) for t in (x, weight))
    scale, bias = torch.randn(2, len(weight), generator=generator)
    return codes.permute(0, 2, 3, 1).contiguous(), values, scale, bias


def ours(case: Case, given: Given, x: Tensor | None = None) -> Tensor:
    codes, values, scale, bias = given
    packed = pack_adder_weight(values, groups=case.groups)
    return integer_adder(codes if x is None else x, packed, scale, bias, STEP, case.kernel, *case.sizes)


def wanted(case: Case, given: Given) -> Tensor:
    """From unfolded patches, every difference as an integer."""
    codes, values, scale, bias = given
    groups, size = case.groups, {"dilation": case.dilation, "padding": case.padding, "stride": case.stride}
    patches = F.unfold(codes.permute(0, 3, 1, 2).double(), case.kernel, **size).long()
    patches = patches.view(len(codes), groups, 1, -1, patches.shape[-1])
    weight = values.flatten(1).long().view(groups, -1, patches.shape[3], 1)
    sums = -(weight - patches).abs().sum(3).flatten(1, 2).transpose(1, 2)
    return integer_oracle.scaled(sums.view(len(codes), *case.output, -1), float(STEP), scale, bias)


@backends
@kinds
def test_a_layer_is_a_sum_of_differences(backend: str, case: Case) -> None:
    given = tensors(case)
    with using(backend):
        y = ours(case, given)
    assert y.dtype == torch.float32
    assert torch.equal(y, wanted(case, given))


@settings(max_examples=25, deadline=None)
@given(cases(), st.sampled_from(BACKENDS))
def test_any_sizes_do(case: Case, backend: str) -> None:
    given = tensors(case)
    with using(backend):
        assert torch.equal(ours(case, given), wanted(case, given))


@backends
@kinds
def test_floats_are_rounded_to_the_step_first(backend: str, case: Case) -> None:
    given = tensors(case)
    noise = torch.rand(given[0].shape, generator=torch.Generator().manual_seed(1)) - 0.5
    with using(backend):
        assert torch.equal(ours(case, given, (given[0] + 0.99 * noise) * STEP), wanted(case, given))


@backends
def test_the_ends_of_the_codes_are_the_farthest_apart(backend: str) -> None:
    case = Case(batch=1, image=(4, 4), channels=(200, 9), kernel=(1, 1))
    codes = torch.full((1, 4, 4, 200), -128, dtype=torch.int8)
    values = torch.full((9, 200, 1, 1), 127, dtype=torch.int8)
    values[3] = -128
    with using(backend):
        y = ours(case, (codes, values, torch.full((9,), 32.0), torch.zeros(9)))
    assert y[0, 2, 3].tolist() == [-255.0 * 200] * 3 + [0.0] + [-255.0 * 200] * 5


@backends
@pytest.mark.parametrize("case", [PLAIN, KINDS["depthwise"]], ids=["plain", "depthwise"])
def test_a_padded_pixel_counts_as_zero(backend: str, case: Case) -> None:
    codes, values, *_ = tensors(case)
    given = (torch.zeros_like(codes), values, torch.full((len(values),), 32.0), torch.zeros(len(values)))
    with using(backend):
        y = ours(case, given)
    assert torch.equal(y, -values.float().abs().sum((1, 2, 3)).expand_as(y))


@backends
def test_an_image_with_a_nan_gives_nan_and_its_neighbours_do_not(backend: str) -> None:
    case = replace(PLAIN, batch=3)
    given = tensors(case)
    x = given[0] * STEP
    x[1, 3, 2, 0] = float("nan")
    with using(backend):
        y = ours(case, given, x)
    assert y[1].isnan().all()
    assert torch.equal(y[::2], wanted(case, given)[::2])


@kinds
def test_packing_loses_nothing(case: Case) -> None:
    codes, values, *_ = tensors(case)
    geometry = case.geometry(codes.permute(0, 3, 1, 2), values)
    unpacked = unpack_adder_weight(pack_adder_weight(values, groups=case.groups), geometry)
    assert torch.equal(unpacked.flatten(0, 1).movedim(-1, 1), values)


def test_threads_change_nothing() -> None:
    given, before, results = tensors(KINDS["wide"]), torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(ours(KINDS["wide"], given))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_other_types_and_sizes_are_refused() -> None:
    given = tensors(PLAIN)
    with pytest.raises(ReparamError, match=r"take float32, or codes as int8, not torch\.float16"):
        ours(PLAIN, given, given[0].half())
    with pytest.raises(ReparamError, match="make it with pack_adder_weight"):
        ours(replace(PLAIN, kernel=(5, 3)), (given[0], given[1][:, :, :2], *given[2:]))


@backends
@pytest.mark.parametrize("groups", [1, 3], ids=["plain", "depthwise"])
def test_an_image_smaller_than_its_kernel_is_refused_as_torch_does(backend: str, groups: int) -> None:
    case = Case(image=(6, 4), channels=(1, 1), kernel=(3, 3), dilation=(1, 2), groups=groups)
    x, values, *rest = tensors(replace(case, image=(6, 5)))
    small = x[:, :, :4]
    with (
        using(backend),
        pytest.raises(ReparamError, match=r"images of 6 x 4 .* the 3 x 5 pixels that the kernel spans"),
    ):
        ours(case, (small, values, *rest))


@kinds
def test_the_operator_keeps_torchs_contract(case: Case) -> None:
    codes, values, scale, bias = tensors(case)
    packed = pack_adder_weight(values, groups=case.groups)
    for x in (codes, codes * STEP):
        torch.library.opcheck(integer_adder, (x, packed, scale, bias, STEP, case.kernel, *case.sizes))
