"""Integer convolutions: every backend against convolutions of integers by torch in double precision, bit for bit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reparam.errors import ReparamError
from reparam.kernels.integer_conv2d import integer_conv2d, pack_conv2d_weight
from tests.kernels import integer_oracle
from tests.kernels.integer_oracle import BACKENDS, using
from tests.kernels.oracle import Case, cases

backends = pytest.mark.parametrize("backend", BACKENDS)
NAN, INF = float("nan"), float("inf")
STATIC = torch.tensor(2.0**-5)
PLAIN = Case(channels=(4, 6), padding=(1, 1))
KINDS = {
    "plain": PLAIN,
    "wide": Case(batch=3, image=(7, 9), channels=(19, 37), padding=(1, 1)),
    "strided": Case(image=(8, 9), channels=(18, 33), kernel=(3, 2), stride=(2, 3), padding=(1, 0)),
    "grouped": Case(channels=(5, 3), kernel=(2, 3), padding=(2, 1), dilation=(1, 2), groups=3),
    "pointwise": Case(channels=(33, 17), kernel=(1, 1)),
    "depthwise": Case(channels=(1, 1), padding=(1, 1), groups=37),
    "multiplied": Case(channels=(1, 2), padding=(1, 1), dilation=(2, 1), groups=7),
    "one channel": Case(channels=(1, 1), padding=(1, 1)),
    "stem": Case(image=(16, 16), channels=(3, 12), kernel=(4, 4), stride=(4, 4)),
}
kinds = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)

Given = tuple[Tensor, Tensor, Tensor, Tensor]


def tensors(case: Case, most: int = 16384) -> Given:
    """Images, an integer weight, a scale and a bias."""
    x, weight, _ = case.tensors(torch.float32)
    generator = torch.Generator().manual_seed(case.seed)
    values = (weight * 2000).clamp(-most, most).to(torch.int16)
    scale, bias = torch.randn(2, len(weight), generator=generator)
    return x * torch.arange(1, len(x) + 1).view(-1, 1, 1, 1), values, scale, bias


def ours(case: Case, given: Given, step: Tensor | None, largest: int = 127) -> Tensor:
    x, values, scale, bias = given
    packed = pack_conv2d_weight(values, groups=case.groups, largest=largest)
    return integer_conv2d(x, packed, scale, bias, step, case.kernel, *case.sizes, largest)


def wanted(case: Case, given: Given, step: Tensor | None, largest: int = 127) -> Tensor:
    """Image by image, from exact codes."""
    x, values, scale, bias = given
    images = []
    for image in x:
        row = image.flatten().tolist()
        own = integer_oracle.step_of(row, largest) if step is None else float(step)
        codes = torch.tensor(integer_oracle.codes_of(row, own, largest)).view(1, *image.shape)
        sums = F.conv2d(codes.double(), values.double(), None, *case.sizes).long()
        images.append(integer_oracle.scaled(sums.movedim(1, -1), own, scale, bias).movedim(-1, 1))
    return torch.cat(images)


@backends
@kinds
@pytest.mark.parametrize("step", [STATIC, None], ids=["static", "dynamic"])
@pytest.mark.parametrize(("most", "largest"), [(16384, 127), (64, 127), (700, 32767)], ids=["int16", "int8", "wide"])
def test_a_layer_is_rounded_as_promised(backend: str, case: Case, step: Tensor | None, most: int, largest: int) -> None:
    given = tensors(case, most)
    with using(backend):
        y = ours(case, given, step, largest)
    assert y.dtype == torch.float32
    assert torch.equal(y, wanted(case, given, step, largest))


@settings(max_examples=25, deadline=None)
@given(cases(), st.sampled_from([64, 16384]), st.sampled_from(BACKENDS), st.booleans())
def test_any_sizes_do(case: Case, most: int, backend: str, is_static: bool) -> None:
    given, step = tensors(case, most), STATIC if is_static else None
    with using(backend):
        assert torch.equal(ours(case, given, step), wanted(case, given, step))


@kinds
def test_layouts_and_threads_change_nothing(case: Case) -> None:
    x, *others = tensors(case)
    before, results = torch.get_num_threads(), []
    try:
        for number, layout in ((1, torch.contiguous_format), (3, torch.channels_last)):
            torch.set_num_threads(number)
            results.append(ours(case, (x.contiguous(memory_format=layout), *others), None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in results)


@backends
@pytest.mark.parametrize("step", [STATIC, None], ids=["static", "dynamic"])
def test_an_image_with_a_nan_gives_nan_and_its_neighbours_do_not(backend: str, step: Tensor | None) -> None:
    case = replace(PLAIN, batch=3)
    given = tensors(case)
    clean = wanted(case, given, step)
    given[0][1, 2, 0, 4] = NAN
    with using(backend):
        y = ours(case, given, step)
    assert y[1].isnan().all()
    assert torch.equal(y[::2], clean[::2])


@backends
def test_an_infinity_saturates_a_given_step_and_has_none_of_its_own(backend: str) -> None:
    given = tensors(PLAIN)
    given[0][0, 0, 0, 0] = INF
    with using(backend):
        assert ours(PLAIN, given, None)[0].isnan().all()
        assert torch.equal(ours(PLAIN, given, STATIC), wanted(PLAIN, given, STATIC))


@backends
def test_an_empty_batch_stays_empty(backend: str) -> None:
    x, *others = tensors(PLAIN)
    with using(backend):
        assert ours(PLAIN, (x[:0], *others), None).shape == (0, 6, 6, 5)


@pytest.mark.parametrize("case", [PLAIN, KINDS["depthwise"]], ids=["plain", "depthwise"])
def test_a_weight_of_other_sizes_is_refused(case: Case) -> None:
    x, values, scale, bias = tensors(case)
    packed = pack_conv2d_weight(values, groups=case.groups)
    with pytest.raises(ReparamError, match="make it with pack_"):
        integer_conv2d(x, packed, scale, bias, None, (5, 3), *case.sizes)
    with pytest.raises(ReparamError, match=r"take float32, not torch\.float64"):
        integer_conv2d(x.double(), packed, scale, bias, None, case.kernel, *case.sizes)


@backends
@pytest.mark.parametrize("groups", [1, 3], ids=["plain", "depthwise"])
def test_an_image_smaller_than_its_kernel_is_refused_as_torch_does(backend: str, groups: int) -> None:
    case = Case(image=(6, 4), channels=(1, 1), kernel=(3, 3), dilation=(1, 2), groups=groups)
    x, values, *rest = tensors(replace(case, image=(6, 5)))
    small = x[..., :4]
    with (
        using(backend),
        pytest.raises(ReparamError, match=r"images of 6 x 4 .* the 3 x 5 pixels that the kernel spans"),
    ):
        ours(case, (small, values, *rest), STATIC)


@kinds
def test_the_operator_keeps_torchs_contract(case: Case) -> None:
    x, values, scale, bias = tensors(case)
    packed = pack_conv2d_weight(values, groups=case.groups)
    torch.library.opcheck(integer_conv2d, (x, packed, scale, bias, None, case.kernel, *case.sizes))
