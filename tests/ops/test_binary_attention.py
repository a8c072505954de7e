"""binary_linear_attention against the quadratic sum it stands for, its gradient against the stated ramp."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.counts import OpCount
from reparam.ops.binary_attention import BinaryLinearAttention, BinaryLinearAttentionOptions
from reparam.ops.integer import binary_attention_integer
from reparam.ops.site import AttentionForm, TokenGrid
from reparam.ops.ste import binarize

GRID = TokenGrid(prefix=1, height=3, width=2)


def build(*, value_dim: int = 4, grid: TokenGrid | None = GRID, **options: object) -> BinaryLinearAttention:
    torch.manual_seed(0)
    form = AttentionForm(
        heads=2, head_dim=4, value_dim=value_dim, query_tokens=7, key_tokens=7, scale=0.5, is_fused=True, grid=grid
    )
    core = BinaryLinearAttention(form, BinaryLinearAttentionOptions(**options))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    for threshold in (core.threshold_q, core.threshold_k):
        if threshold is not None:
            nn.init.normal_(threshold, std=0.5, generator=generator)
    return core.double()


def qkv(*, tokens: int = 7, value_dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 2, tokens, 4), (2, 2, tokens, 4), (2, 2, tokens, value_dim)]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)  # type: ignore[return-value]


def similarity(core: BinaryLinearAttention, q: Tensor, k: Tensor) -> Tensor:
    """s(i, j) pair by pair."""
    if core.options.codes == "real":
        return (F.cosine_similarity(q.unsqueeze(-2), k.unsqueeze(-3), dim=-1) + 1) / 2
    threshold_q = 0 if core.threshold_q is None else core.threshold_q
    threshold_k = 0 if core.threshold_k is None else core.threshold_k
    on_q, on_k = (q >= threshold_q).unsqueeze(-2), (k >= threshold_k).unsqueeze(-3)
    agree = (on_q == on_k) if core.options.codes == "sign" else (on_q & on_k)
    return agree.double().mean(dim=-1)


@pytest.mark.parametrize("codes", ["sign", "bit", "real"])
@pytest.mark.parametrize("threshold", ["zero", "learned"])
@pytest.mark.parametrize("value_dim", [4, 6])
def test_it_is_the_similarity_weighted_mean_of_the_values(codes: str, threshold: str, value_dim: int) -> None:
    core = build(codes=codes, threshold=threshold, conv_kernel=0, value_dim=value_dim)
    q, k, v = qkv(value_dim=value_dim)
    s = similarity(core, q, k)
    assert s.min() >= 0
    assert s.max() <= 1
    expected = (s / s.sum(dim=-1, keepdim=True)).nan_to_num() @ v
    torch.testing.assert_close(core(q, k, v), expected)


def test_a_query_that_agrees_with_no_key_gets_zero_not_nan() -> None:
    core = build(codes="bit", threshold="zero", conv_kernel=0)
    q, k, v = qkv()
    assert torch.equal(core(-q.abs() - 1, k, v), torch.zeros_like(v))
    core = build(codes="sign", threshold="zero", conv_kernel=0)
    torch.testing.assert_close(core(-torch.ones_like(q), torch.ones_like(k), v), torch.zeros_like(v))


def test_the_own_constant_weighs_the_token_s_own_value_as_ecoformer_released_it() -> None:
    core = build(constant_term="own", conv_kernel=0, threshold="zero")
    q, k, v = qkv()
    product = torch.sign(q) @ torch.sign(k).transpose(-2, -1)
    expected = (product @ v + 4 * v) / (product.sum(dim=-1, keepdim=True) + 4 * 7).clamp_min(1.0)
    torch.testing.assert_close(core(q, k, v), expected)


def test_the_l2_normaliser_gives_unit_rows_times_a_learned_scale() -> None:
    core = build(normaliser="l2", codes="bit", threshold="zero", conv_kernel=0)
    q, k, v = qkv()
    codes_q, codes_k = (q >= 0).double(), (k >= 0).double()
    mixed = 0.5 * v + codes_q @ (codes_k.transpose(-2, -1) @ v) / math.pi
    torch.testing.assert_close(core(q, k, v), mixed / mixed.norm(dim=-1, keepdim=True))
    assert core.output_scale is not None
    nn.init.constant_(core.output_scale, 3.0)
    torch.testing.assert_close(core(q, k, v).norm(dim=-1), torch.full((2, 2, 7), 3.0, dtype=torch.float64))


def test_learned_scales_start_as_none_and_weigh_the_mixture_and_the_mean_of_each_head() -> None:
    core, plain = build(scales="learned"), build()
    q, k, v = qkv()
    assert torch.equal(core(q, k, v), plain(q, k, v))
    assert core.output_scale is not None
    assert core.mean_scale is not None
    with torch.no_grad():
        core.output_scale.copy_(torch.tensor([3.0, 0.5]).view(2, 1, 1))
        core.mean_scale.copy_(torch.tensor([-2.0, 0.25]).view(2, 1, 1))
    mixture, mean = plain(q, k, v), v.mean(2, keepdim=True)
    torch.testing.assert_close(core(q, k, v)[:, 0], 3 * mixture[:, 0] - 2 * mean[:, 0])
    torch.testing.assert_close(core(q, k, v)[:, 1], 0.5 * mixture[:, 1] + 0.25 * mean[:, 1])


def test_learned_scales_are_counted() -> None:
    shapes = [t.shape for t in qkv()]
    batch_heads, tokens, width = 2 * 2, 7, 4
    assert build(scales="learned").op_count(*shapes) == build().op_count(*shapes) + OpCount(
        {
            ("mul", "f32"): batch_heads * (tokens * width + 2 * width),  # each output; the mean, by 1 / N and by b
            ("add", "f32"): batch_heads * (tokens * width + tokens * width),  # the values' sum, and to each output
        }
    )


def test_the_convolution_is_two_dimensional_and_skips_prefix_tokens() -> None:
    core = build()
    q, k, v = qkv()
    without = build(conv_kernel=0)(q, k, v)
    assert torch.equal(core(q, k, v), without)
    conv = core.token_conv.conv  # type: ignore[union-attr]
    nn.init.normal_(conv.weight)
    branch = core(q, k, v) - without
    assert torch.equal(branch[:, :, 0], torch.zeros_like(branch[:, :, 0]))
    for head in range(2):
        for channel in range(4):
            plane = v[:, head, 1:, channel].reshape(2, 1, 3, 2)
            kernel = conv.weight[head * 4 + channel].unsqueeze(0)
            expected = F.conv2d(plane, kernel, padding=1).reshape(2, 6)
            torch.testing.assert_close(branch[:, head, 1:, channel], expected)


def test_the_convolution_follows_another_image_size_of_the_same_aspect() -> None:
    core = build()
    nn.init.normal_(core.token_conv.conv.weight)  # type: ignore[union-attr]
    assert core(*qkv(tokens=1 + 6 * 4)).shape == (2, 2, 25, 4)


def test_tokens_that_fill_no_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens fill no grid of aspect 3:2"):
        build()(*qkv(tokens=14))


def test_the_released_convolution_runs_along_the_token_index_one_filter_per_head() -> None:
    core = build(conv_layout="sequence", conv_kernel=3, conv_init="normal")
    q, k, v = qkv()
    branch = core(q, k, v) - build(conv_kernel=0)(q, k, v)
    weight = core.token_conv.conv.weight  # type: ignore[union-attr]
    padded = F.pad(v, (0, 0, 1, 1))
    expected = sum(weight[:, 0, t, 0].view(1, 2, 1, 1) * padded[:, :, t : t + 7] for t in range(3))
    torch.testing.assert_close(branch, expected)


@pytest.mark.parametrize(("low", "slope"), [(-1.0, 0.5), (0.0, 0.25)])
def test_codes_pass_the_gradient_of_a_ramp_around_the_threshold(low: float, slope: float) -> None:
    x = torch.tensor([-2.1, -2.0, -0.1, 0.0, 1.9, 2.1], requires_grad=True)
    codes = binarize(x, low=low, window=2.0)
    assert codes.tolist() == [low, low, low, 1.0, 1.0, 1.0]
    codes.backward(torch.full((6,), 3.0))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 3 * slope, 3 * slope, 3 * slope, 3 * slope, 0.0]


def test_thresholds_get_the_opposite_gradient_of_their_channel() -> None:
    core = build(conv_kernel=0)
    q, k, v = (x.requires_grad_() for x in qkv())
    core(q, k, v).square().sum().backward()
    assert core.threshold_q is not None
    assert q.grad is not None
    torch.testing.assert_close(core.threshold_q.grad, -q.grad.sum(dim=(0, 2)).unsqueeze(1))


def test_linear_form_never_builds_a_token_by_token_map() -> None:
    core = build(conv_kernel=0).float()
    shape = (1, 2, 4096, 4)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    with Watch():
        core(torch.randn(shape), torch.randn(shape), torch.randn(shape))
    assert max(sizes) <= 2 * 4096 * 4


@pytest.mark.parametrize("codes", ["sign", "bit"])
def test_the_integer_form_gives_the_same_numerator_and_normaliser(codes: str) -> None:
    core = build(codes=codes, conv_kernel=0)
    q, k, _ = qkv()
    v = torch.randint(-128, 128, (2, 2, 7, 4))
    code_q, code_k = core.encode(q, core.threshold_q), core.encode(k, core.threshold_k)
    numerator, normaliser = binary_attention_integer(code_q[0, 0], code_k[0, 0], v[0, 0], constant=core.constant)
    expected = numerator.double() / normaliser.clamp_min(1).double()
    assert torch.equal(core(q, k, v.double())[0, 0], expected)


def test_hand_counted_operations() -> None:
    core = build(conv_kernel=0)
    count = core.op_count((1, 1, 7, 4), (1, 1, 7, 4), (1, 1, 7, 4)).as_dict()
    products, sum_k, q_dot_sum = 2 * 7 * 4 * 4, 7 * 4, 7 * 4
    sum_v, add_constant_to_numerator, add_constant_to_normaliser = 7 * 4, 7 * 4, 7
    adds = products + sum_k + q_dot_sum + sum_v + add_constant_to_numerator + add_constant_to_normaliser
    assert count == {"add.f32": adds, "cmp.f32": 2 * 7 * 4, "div.f32": 7 * 4, "mul.f32": 4}


def test_half_precision_sums_do_not_overflow() -> None:
    core = build(conv_kernel=0, threshold="zero")
    ones, v = torch.ones(1, 2, 20_000, 4).half(), torch.full((1, 2, 20_000, 4), 10.0).half()
    torch.testing.assert_close(core(ones, ones, v), v)
    with torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(core.float()(ones.float(), ones.float(), v.float()), v)
