"""The router and its loss against explicit formulas and the reference's check values."""

import math

import pytest
import torch
from torch import Tensor, nn

from reparam.ops.moe import MoeMlp, MoeMlpOptions
from reparam.ops.routing import (
    Router,
    Routing,
    expected_load,
    load_balance_loss,
    squared_coefficient_of_variation,
)


def routing(logits: Tensor, noisy: Tensor | None = None) -> Routing:
    noisy = logits if noisy is None else noisy
    return Routing(noisy.argmax(dim=1), torch.ones(len(logits), 1), logits, noisy)


def test_the_squared_coefficient_of_variation_uses_the_population_variance() -> None:
    assert squared_coefficient_of_variation(torch.tensor([300.0, 200.0])).item() == pytest.approx(0.04)
    assert squared_coefficient_of_variation(torch.tensor([240.0, 240.0])).item() == 0.0


def test_the_load_estimate_gives_the_reference_values() -> None:
    # Clean logits (1, 0), noisy (1.3, 0.2), sigma 0.5: Phi(1.6) and Phi(-2.6).
    load = expected_load(routing(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.3, 0.2]])), noise=0.5)
    assert load.tolist() == pytest.approx([0.9452, 0.0047], abs=1e-4)


def test_the_loss_is_the_formula_written_out() -> None:
    torch.manual_seed(0)
    clean, noise, latency = torch.randn(50, 2).double(), 0.5, (3.0, 1.0)
    noisy = clean + noise * torch.randn(50, 2).double()
    alpha = [0.75, 0.25]
    importance, load = [0.0, 0.0], [0.0, 0.0]
    for c, n in zip(clean.tolist(), noisy.tolist(), strict=True):
        total = sum(math.exp(x) for x in c)
        for i in range(2):
            importance[i] += math.exp(c[i]) / total
            load[i] += 0.5 * (1 + math.erf((c[i] - n[1 - i]) / noise / math.sqrt(2)))

    def scv(values: list[float]) -> float:
        a, b = (w * x for w, x in zip(alpha, values, strict=True))
        return ((a - b) / (a + b)) ** 2

    loss = load_balance_loss(routing(clean, noisy), latency, noise=noise)
    assert loss.item() == pytest.approx(scv(importance) + scv(load))


def test_the_loss_vanishes_when_tokens_are_inversely_proportional_to_latency() -> None:
    # 40 of 100 tokens to the expert that takes 0.6 of the time.
    logits = torch.full((100, 2), -40.0)
    logits[:40, 0], logits[40:, 1] = 40.0, 40.0
    assert load_balance_loss(routing(logits), (0.6, 0.4)).item() == pytest.approx(0.0, abs=1e-6)
    assert load_balance_loss(routing(logits), (0.4, 0.6)).item() > 0.1


@pytest.mark.parametrize("latency", [(0.6, 0.4), (0.5, 0.5), (3.0, 1.0)], ids=str)
def test_training_by_the_loss_alone_moves_the_shares_to_the_target(latency: tuple[float, float]) -> None:
    torch.manual_seed(0)
    router = Router(8, latency=latency).train()
    optimiser = torch.optim.Adam(router.parameters(), lr=0.05)
    # A constant feature, so that a router without a bias can shift its decision.
    tokens = torch.cat([torch.randn(512, 7), torch.ones(512, 1)], dim=1)
    for _ in range(150):
        optimiser.zero_grad()
        load_balance_loss(router(tokens), latency).backward()
        optimiser.step()
    share = (router(tokens).expert == 0).float().mean().item()
    assert share == pytest.approx(latency[1] / sum(latency), abs=0.06)


def mixture(**options: object) -> MoeMlp:
    torch.manual_seed(0)
    example = MoeMlp.examples()[0]
    return MoeMlp.from_dense(example.dense(), example.site, MoeMlpOptions(**options))  # type: ignore[arg-type]


def test_the_router_learns_from_the_output_and_the_released_one_does_not() -> None:
    x = torch.randn(2, 5, 8)
    for gate, learns in (("straight_through", True), ("probability", True), ("one", False)):
        moe = mixture(gate=gate).train()
        moe(x).square().sum().backward()
        gradient = moe.router.weight.grad
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) is learns, gate


def test_the_straight_through_gate_is_one_with_the_gradient_of_the_log_probability() -> None:
    router = Router(3, init="normal").eval()
    x = torch.randn(4, 3)
    out = router(x)
    assert torch.equal(out.gate, torch.ones(4, 1))
    out.gate.sum().backward()
    weight = router.weight.detach().clone().requires_grad_()
    (x @ weight.T).log_softmax(dim=-1).gather(1, out.expert.unsqueeze(1)).sum().backward()
    torch.testing.assert_close(router.weight.grad, weight.grad)


def test_a_converted_mlp_starts_where_the_dense_one_stood() -> None:
    example = MoeMlp.examples()[0]
    dense = example.dense()
    x = torch.randn(2, 5, 8)
    expected = dense(x)
    moe = MoeMlp.from_dense(dense, example.site, MoeMlpOptions()).eval()
    assert moe.multiply is dense
    torch.testing.assert_close(moe(x), expected, rtol=1e-6, atol=1e-6)


def test_noise_is_drawn_in_training_and_not_in_evaluation() -> None:
    moe = mixture()
    tokens = torch.randn(400, 8)
    assert 0.3 < moe.router.train()(tokens).expert.float().mean() < 0.7
    assert moe.router.eval()(tokens).expert.sum() == 0


def test_tokens_routed_to_the_shift_expert_get_its_output() -> None:
    moe = mixture(router_init="normal").eval()
    nn.init.normal_(moe.router.weight)
    x = torch.randn(2, 5, 8)
    tokens = x.reshape(-1, 8)
    expert = moe.router(tokens).expert
    expected = torch.stack([(moe.shift if i else moe.multiply)(t) for t, i in zip(tokens, expert, strict=True)])
    assert 0 < expert.sum() < 10
    torch.testing.assert_close(moe(x).reshape(-1, 8), expected)


@pytest.mark.parametrize("split", [0, 1, 6, 10], ids=["all-shift", "one", "some", "all-multiply"])
@pytest.mark.parametrize("activation_bits", [0, 8])
def test_every_dispatch_gives_the_same_output_and_gradients(split: int, activation_bits: int) -> None:
    shift = {"activation_bits": activation_bits}
    mixtures = {way: mixture(dispatch=way, shift=shift).eval() for way in ("gather", "grouped", "masked")}
    x = torch.randn(10, 8)
    index = (torch.arange(10) >= split).long()[torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    results = {}
    for way, moe in mixtures.items():
        out = moe._dispatch(x, index)
        (out * torch.arange(80.0).reshape(10, 8)).sum().backward()
        results[way] = (out, [p.grad for n, p in moe.named_parameters() if not n.startswith("router")])
    for way in ("grouped", "masked"):
        torch.testing.assert_close(results[way][0], results["gather"][0])
        for got, expected in zip(results[way][1], results["gather"][1], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_automatic_dispatch_never_reads_sizes_on_an_accelerator_s_host() -> None:
    moe = mixture()
    assert moe._way(torch.empty(4, 8)) == "gather"
    assert moe._way(torch.empty(4, 8, device="meta")) == "masked"


def test_hand_counted_operations_at_the_balanced_load() -> None:
    count = mixture().op_count((1, 10, 8)).as_dict()
    router, layer = 10 * 2 * 8, 8 * 16
    assert count["mul.f32"] == router + 4 * 2 * layer
    assert count["shift.f32"] == 6 * 2 * layer
    assert count["add.f32"] == router + 10 * 2 * layer + 10 * (16 + 8)
    assert count["cmp.f32"] == 10


def test_an_expert_without_tokens_keeps_its_range_and_the_step_goes_on() -> None:
    moe = mixture(shift={"activation_bits": 8}, router_noise=0.0).train()
    before = {name: b.clone() for name, b in moe.shift.named_buffers()}
    moe(torch.randn(2, 5, 8)).sum().backward()
    assert moe.router(torch.randn(10, 8)).expert.sum() == 0
    assert all(torch.equal(before[name], b) for name, b in moe.shift.named_buffers())


def test_the_range_of_the_shift_expert_follows_its_own_tokens_in_grouped_dispatch() -> None:
    x = torch.randn(10, 8)
    x[0] *= 1000
    index = torch.ones(10, dtype=torch.long)
    index[0] = 0
    ranges = {}
    for way in ("gather", "grouped"):
        moe = mixture(dispatch=way, shift={"activation_bits": 8}).train()
        moe._dispatch(x, index)
        ranges[way] = [b.clone() for name, b in moe.shift.named_buffers() if name.endswith("absmax")]
    assert torch.equal(ranges["gather"][0], ranges["grouped"][0])


def test_operations_can_be_counted_at_a_measured_share() -> None:
    moe = mixture()
    count = moe.op_count((1, 10, 8), mult_share=1.0)
    assert count.total("shift") == 0
    assert count.total("mul") == 10 * 2 * 8 + 10 * 2 * 8 * 16
