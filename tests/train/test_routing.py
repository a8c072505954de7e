import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reparam.ops.routing import Router, Routing, expert_use, load_balance_loss, set_noise_
from reparam.train.routing import RoutingRecorder


class TwoLayers(nn.Module):
    """Two routers on tokens (T, 8); the gates go to the output so that gradients flow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low = Router(8, latency=(0.6, 0.4), init="normal", noise=0.5)
        self.high = Router(8, latency=(1.0, 1.0), init="normal", noise=0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens * self.low(tokens).gate
        return tokens * self.high(tokens).gate


def loss_of(routing: Routing, latency: tuple[float, float]) -> Tensor:
    return load_balance_loss(expert_use(routing, noise=0.5), torch.tensor(latency))


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_balance_loss_is_the_mean_over_layers_of_the_loss_of_each_routing() -> None:
    model, seen = TwoLayers(), {}
    for name, router in model.named_children():
        router.register_forward_hook(lambda _, __, routing, name=name: seen.__setitem__(name, routing))
    with RoutingRecorder(model) as recorder:
        model(torch.randn(32, 8))
        loss = recorder.balance_loss()
    low, high = loss_of(seen["low"], (0.6, 0.4)), loss_of(seen["high"], (1.0, 1.0))
    assert loss is not None
    torch.testing.assert_close(loss, (low + high) / 2)


def test_a_layer_that_runs_twice_counts_once_with_the_mean_of_its_runs() -> None:
    model, seen = TwoLayers(), []
    model.low.register_forward_hook(lambda _, __, routing: seen.append(routing))
    with RoutingRecorder(model) as recorder:
        model.low(torch.randn(32, 8))
        model.low(torch.randn(16, 8))
        once = model.high(torch.randn(8, 8))
        loss = recorder.balance_loss()
    first, second = (loss_of(routing, (0.6, 0.4)) for routing in seen)
    assert loss is not None
    torch.testing.assert_close(loss, ((first + second) / 2 + loss_of(once, (1.0, 1.0))) / 2)


def test_the_loss_is_made_with_the_noise_that_was_set() -> None:
    model, seen = TwoLayers(), []
    set_noise_(model, 1.0)
    model.low.register_forward_hook(lambda _, __, routing: seen.append(routing))
    with RoutingRecorder(model) as recorder:
        model.low(torch.randn(32, 8))
        loss = recorder.balance_loss()
    expected = load_balance_loss(expert_use(seen[0], noise=model.low.sigma), torch.tensor([0.6, 0.4]))
    assert model.low.sigma == pytest.approx(0.05)
    assert loss is not None
    torch.testing.assert_close(loss, expected)


def test_without_noise_the_loss_is_that_of_the_importance_alone() -> None:
    router = Router(8, latency=(0.5, 0.5), init="normal", noise=0.0)
    tokens = torch.randn(16, 8)
    with RoutingRecorder(router) as recorder:
        router(tokens)
        loss = recorder.balance_loss()
    multiply, shift = router(tokens).logits.softmax(dim=-1).sum(dim=0)
    assert loss is not None
    torch.testing.assert_close(loss, ((multiply - shift) / (multiply + shift)) ** 2)


def test_the_balance_loss_reaches_every_router() -> None:
    model = TwoLayers()
    with RoutingRecorder(model) as recorder:
        model(torch.randn(32, 8))
        loss = recorder.balance_loss()
    assert loss is not None
    loss.backward()
    for router in (model.low, model.high):
        assert router.weight.grad is not None
        assert router.weight.grad.abs().sum() > 0


def test_shares_count_tokens_over_all_forwards() -> None:
    model = TwoLayers().eval()
    batches = [torch.randn(10, 8), torch.randn(30, 8)]
    with RoutingRecorder(model) as recorder:
        for tokens in batches:
            model(tokens)
        shares = recorder.shares()
    with torch.no_grad():
        multiplied = sum(int((model.low(tokens).expert == 0).sum()) for tokens in batches)
    assert shares["low"] == pytest.approx(multiplied / 40)
    assert list(shares) == ["low", "high"]


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_without_training_there_are_shares_but_no_balance_loss(mode: str) -> None:
    model = TwoLayers().train(mode != "eval")
    with torch.set_grad_enabled(mode != "no_grad"), RoutingRecorder(model) as recorder:
        model(torch.randn(8, 8))
        assert recorder.balance_loss() is None
        assert len(recorder.shares()) == 2


def test_a_loss_is_given_once_and_what_nobody_took_is_dropped_at_the_next_forward() -> None:
    model, (first, second) = TwoLayers(), torch.randn(2, 8, 8)
    with RoutingRecorder(model) as recorder:
        torch.manual_seed(1)
        model(second)
        alone = recorder.balance_loss()
        model(first)
        recorder.start_forward()
        torch.manual_seed(1)
        model(second)
        after = recorder.balance_loss()
        assert recorder.balance_loss() is None
    assert alone is not None
    assert after is not None
    torch.testing.assert_close(after, alone, rtol=0, atol=0)


def test_recomputed_activations_do_not_leave_losses_for_the_next_step() -> None:
    model = TwoLayers()
    with RoutingRecorder(model) as recorder:
        for _ in range(2):
            recorder.start_forward()
            out = checkpoint(model, torch.randn(8, 8, requires_grad=True), use_reentrant=False)
            loss = recorder.balance_loss()
            assert loss is not None
            (out.sum() + loss).backward()
    assert model.low.weight.grad is not None


def test_hooks_are_gone_on_exit_even_after_an_error() -> None:
    model = TwoLayers()
    recorder = RoutingRecorder(model)
    with recorder:
        assert hooks_of(model) == 2
    assert hooks_of(model) == 0
    with pytest.raises(ZeroDivisionError), recorder:
        raise ZeroDivisionError
    assert hooks_of(model) == 0


def test_a_model_without_routers_has_neither_loss_nor_shares() -> None:
    with RoutingRecorder(nn.Linear(8, 8)) as recorder:
        assert recorder.balance_loss() is None
        assert recorder.shares() == {}
        assert len(recorder) == 0
