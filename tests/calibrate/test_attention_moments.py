"""The linear part of an attention's fit against least squares on the parts themselves, written out."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.calibrate.attention_moments import AttentionMoments
from reparam.ops.binary_attention import BinaryLinearAttention, BinaryLinearAttentionOptions
from reparam.ops.site import AttentionForm, TokenGrid

FORMS: dict[str, dict[str, Any]] = {
    "scales and conv": {"scales": "learned"},
    "conv": {},
    "scales": {"scales": "learned", "conv_kernel": 0},
    "neither": {"conv_kernel": 0},
    "sequence": {"scales": "learned", "conv_layout": "sequence", "conv_kernel": 5},
    "l2": {"normaliser": "l2"},
    "shared keys": {"scales": "learned", "key_heads": 2},
    "shared keys, sequence": {"scales": "learned", "key_heads": 2, "conv_layout": "sequence"},
    "one key head": {"scales": "learned", "key_heads": 1},
}
forms = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)


def core_of(key_heads: int | None = None, **options: Any) -> BinaryLinearAttention:
    grid = TokenGrid(prefix=1, height=3, width=2)
    form = AttentionForm(
        heads=4, key_heads=key_heads, head_dim=6, value_dim=3, query_tokens=7, key_tokens=7, scale=0.5, is_fused=True,
        grid=grid,
    )  # fmt: skip
    return BinaryLinearAttention(form, BinaryLinearAttentionOptions(**options))


def inputs(core: BinaryLinearAttention, batch: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(batch, heads, 7, width, generator=generator)
        for heads, width in ((4, 6), (core.key_heads, 6), (core.key_heads, 3))
    )
    share = 4 // core.key_heads
    q = q + 0.5
    y = F.scaled_dot_product_attention(2 * q, *(t.repeat_interleave(share, 1) for t in (k, v)))
    return q, k, v + 0.3, y + 0.3


def moments_of(core: BinaryLinearAttention, parts: tuple[Tensor, ...]) -> AttentionMoments:
    sums = AttentionMoments(core)
    with torch.no_grad():
        for batch in zip(*(t.split(16) for t in parts), strict=True):
            sums.add(*batch)
    return sums


def put(core: BinaryLinearAttention, found: Any) -> None:
    with torch.no_grad():
        for parameter, value in ((core.output_scale, found.output_scale), (core.mean_scale, found.mean_scale)):
            if parameter is not None:
                parameter.copy_(value)
        if core.token_conv is not None:
            core.token_conv.conv.weight.copy_(found.taps)  # type: ignore[union-attr]  # a convolution


def least_squares(core: BinaryLinearAttention, q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """The smallest squared error by one dense system: the output is affine in the parameters, so probe each."""
    parameters = [p for p in (core.output_scale, core.mean_scale) if p is not None]
    parameters += [] if core.token_conv is None else list(core.token_conv.parameters())
    for parameter in parameters:
        nn.init.zeros_(parameter)

    def columns() -> list[Tensor]:
        found = []
        for parameter in parameters:
            for place in range(parameter.numel()):
                parameter.view(-1)[place] = 1.0
                found.append((core(q, k, v) - still).flatten())
                parameter.view(-1)[place] = 0.0
        return found

    with torch.no_grad():
        still = core(q, k, v)
        design = columns()
        gap = (y - still).flatten().double()
        if design:
            matrix = torch.stack(design, dim=1).double()
            gap = gap - matrix @ torch.linalg.lstsq(matrix, gap.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    return gap.square().sum()


@forms
def test_the_fit_is_the_least_squares_solution_of_scales_and_convolution_together(fields: dict[str, Any]) -> None:
    core = core_of(**fields)
    parts = inputs(core)
    found = moments_of(core, parts).fit()
    put(core, found)
    with torch.no_grad():
        own = (core(*parts[:3]) - parts[3]).double().square()
    torch.testing.assert_close(found.error, own.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.sum(), least_squares(core, *parts), rtol=1e-3, atol=1e-4)


@forms
def test_the_error_at_the_start_is_that_of_the_attention_as_it_starts(fields: dict[str, Any]) -> None:
    core = core_of(**fields)
    parts = inputs(core)
    with torch.no_grad():
        own = (core(*parts[:3]) - parts[3]).double().square().sum((0, 2, 3))
    torch.testing.assert_close(moments_of(core, parts).start_error(), own, rtol=1e-4, atol=1e-4)


def test_values_that_are_always_zero_get_no_filter() -> None:
    core = core_of(scales="learned")
    q, k, v, y = inputs(core)
    v[..., 1], y[..., 1] = 0.0, 0.0
    found = moments_of(core, (q, k, v, y)).fit()
    assert found.taps is not None
    assert torch.isfinite(found.taps).all()
    assert not found.taps.view(4, 3, -1)[:, 1].any()
