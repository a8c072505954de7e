"""The router and its loss against explicit formulas and the reference's check values."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing, nn

from reparam.counts import OpCount
from reparam.ops.moe import MoeMlp, MoeMlpOptions
from reparam.ops.routing import (
    Router,
    Routing,
    expert_use,
    load_balance_loss,
    set_noise_,
    squared_coefficient_of_variation,
)
from tests.ops.two_processes import one_of_two


def routing(logits: Tensor, noisy: Tensor | None = None) -> Routing:
    noisy = logits if noisy is None else noisy
    return Routing(noisy.argmax(dim=1), torch.ones(len(logits), 1), logits, noisy)


def loss_of(routing: Routing, latency: tuple[float, float], *, noise: float = 0.5) -> Tensor:
    return load_balance_loss(expert_use(routing, noise=noise), routing.logits.new_tensor(latency))


def test_the_squared_coefficient_of_variation_uses_the_population_variance() -> None:
    assert squared_coefficient_of_variation(torch.tensor([300.0, 200.0])).item() == pytest.approx(0.04)
    assert squared_coefficient_of_variation(torch.tensor([240.0, 240.0])).item() == 0.0


def test_the_load_estimate_gives_the_reference_values() -> None:
    # Clean logits (1, 0), noisy (1.3, 0.2), sigma 0.5: Phi(1.6) and Phi(-2.6).
    _, load = expert_use(routing(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.3, 0.2]])), noise=0.5)
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

    loss = loss_of(routing(clean, noisy), latency, noise=noise)
    assert loss.item() == pytest.approx(scv(importance) + scv(load))


def test_the_loss_vanishes_when_tokens_are_inversely_proportional_to_latency() -> None:
    # 40 of 100 tokens to the expert that takes 0.6 of the time.
    logits = torch.full((100, 2), -40.0)
    logits[:40, 0], logits[40:, 1] = 40.0, 40.0
    assert loss_of(routing(logits), (0.6, 0.4)).item() == pytest.approx(0.0, abs=1e-6)
    assert loss_of(routing(logits), (0.4, 0.6)).item() > 0.1


@pytest.mark.parametrize("latency", [(0.6, 0.4), (0.5, 0.5), (3.0, 1.0)], ids=str)
def test_training_by_the_loss_alone_moves_the_shares_to_the_target(latency: tuple[float, float]) -> None:
    torch.manual_seed(0)
    router = Router(8, latency=latency, bias=True).train()
    optimiser = torch.optim.Adam(router.parameters(), lr=0.05)
    tokens = torch.randn(512, 8)
    for _ in range(150):
        optimiser.zero_grad()
        loss_of(router(tokens), latency).backward()
        optimiser.step()
    share = (router(tokens).expert == 0).float().mean().item()
    assert share == pytest.approx(latency[1] / sum(latency), abs=0.06)


def test_noise_alone_meets_the_target_while_every_token_would_go_one_way_without_it() -> None:
    torch.manual_seed(0)
    # A difference that no token escapes: P(N(0, 2 sigma**2) > 0.18) is 0.4 at sigma 0.5.
    logits = torch.tensor([0.0, 0.18]).expand(4000, 2)
    losses = [loss_of(routing(logits, logits + s * torch.randn(4000, 2)), (0.6, 0.4), noise=s) for s in (0.5, 0.05)]
    assert losses[0].item() < 0.02
    assert losses[1].item() > 0.5


def test_the_noise_falls_along_a_half_cosine_and_depends_on_nothing_but_the_fraction() -> None:
    falling, constant = Router(4, noise=0.5, noise_end=0.1), Router(4, noise=0.5, noise_end=1.0)
    model = nn.Sequential(falling, nn.Linear(4, 4), constant)
    for fraction, sigma in ((0.0, 0.5), (1.0, 0.05), (0.5, 0.275), (0.25, 0.05 + 0.45 * (1 + math.sqrt(0.5)) / 2)):
        set_noise_(model, fraction)
        assert falling.sigma == pytest.approx(sigma)
        assert constant.sigma == pytest.approx(0.5)
    assert not list(falling.buffers())


def test_the_noise_that_is_drawn_has_the_deviation_that_was_set() -> None:
    torch.manual_seed(0)
    router = Router(4, noise=0.5, noise_end=0.1).train()
    set_noise_(router, 1.0)
    out = router(torch.randn(20_000, 4))
    assert (out.noisy_logits - out.logits).std().item() == pytest.approx(0.05, rel=0.03)


LATENCIES = {(0.6, 0.4): 0.4, (0.3, 0.7): 0.7}


def share_of(moe: MoeMlp, *, training: bool) -> float:
    tokens = torch.randn(4000, 8, generator=torch.Generator().manual_seed(9))
    return (moe.router.train(training)(tokens).expert == 0).float().mean().item()


@pytest.mark.parametrize(("latency", "target"), LATENCIES.items(), ids=str)
def test_a_mixture_that_trains_comes_from_all_multiplied_to_its_target_in_training_and_in_evaluation(
    latency: tuple[float, float], target: float
) -> None:
    moe = mixture(latency=latency, router_bias=True)
    dense = copy.deepcopy(moe.multiply)
    assert share_of(moe, training=False) == 1.0
    train_mixture(moe, dense, latency)
    assert share_of(moe, training=True) == pytest.approx(target, abs=0.05)
    assert share_of(moe, training=False) == pytest.approx(target, abs=0.05)


def test_the_released_router_stays_the_hyperplane_that_it_started_as() -> None:
    moe = mixture(gate="one", router_init="normal")
    dense, before = copy.deepcopy(moe.multiply), share_of(moe, training=False)
    train_mixture(moe, dense, (0.3, 0.7), steps=5)
    assert share_of(moe, training=False) == before


def train_mixture(moe: MoeMlp, dense: nn.Module, latency: tuple[float, float], *, steps: int = 150) -> None:
    """Teaches a mixture to do what the dense MLP does, with noise that falls and the balance loss."""
    seen: list[Routing] = []
    moe.router.register_forward_hook(lambda router, inputs, out: seen.append(out))
    optimiser = torch.optim.Adam([p for p in moe.parameters() if p.requires_grad], lr=0.01)
    for step in range(steps):
        set_noise_(moe.train(), step / steps)
        tokens = torch.randn(256, 8)
        error = (moe(tokens) - dense(tokens)).square().mean()
        (error + 0.1 * loss_of(seen.pop(), latency, noise=moe.router.sigma)).backward()
        optimiser.step()
        optimiser.zero_grad()


def test_two_processes_have_the_loss_and_on_average_the_gradient_of_one_with_all_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 2, dtype=torch.float64)
    logits[:20, 0] += 3  # each process alone would see another imbalance
    noisy = logits + 0.5 * torch.randn_like(logits)
    multiprocessing.spawn(one_of_two, (str(tmp_path), logits, noisy), nprocs=2)
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    expected = loss_of(routing(logits * weight, noisy), (0.6, 0.4))
    expected.backward()
    losses, gradients = zip(*(torch.load(tmp_path / str(rank)) for rank in (0, 1)), strict=True)
    for loss in losses:
        torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, weight.grad)
    assert not torch.allclose(gradients[0], gradients[1])


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


def test_a_router_s_bias_costs_two_additions_a_token() -> None:
    with_bias, without = (mixture(router_bias=on).op_count((1, 10, 8)) for on in (True, False))
    assert with_bias == without + OpCount({("add", "f32"): 20})


def test_without_a_bias_tokens_around_zero_split_in_halves_whatever_the_target() -> None:
    router = Router(8, init="normal").eval()
    tokens = torch.randn(50, 8)
    share = (router(torch.cat([tokens, -tokens])).expert == 0).float().mean().item()
    assert share == 0.5
    shifted = Router(8, init="normal", bias=True).eval()
    nn.init.constant_(shifted.bias[1:], 9.0)
    assert shifted(tokens).expert.sum() == 50


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
