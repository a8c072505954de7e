"""A whole model with exact cores in its attentions' places gives the model's own bits."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from reparam.graph.attention_surgery import CoreOpener
from reparam.graph.exact_model import exact_copy
from tests.pico import ATTENTION, images, inline_net, plan_for, recipe, token_net, vit


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.attn = nn.Conv2d(3, 8, 4, stride=4), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        out: torch.Tensor = self.attn(tokens, tokens, tokens, need_weights=False)[0]
        return out


@pytest.mark.parametrize("make", [vit, inline_net, lambda: token_net("two cores"), lambda: token_net("bias"), Stack])
@torch.no_grad()
def test_its_outputs_are_the_models(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    plan = plan_for(model, recipe([ATTENTION]))
    state = copy.deepcopy(model.state_dict())
    exact = exact_copy(model, plan, images())
    for x in (images(), images(3, seed=1)):
        torch.testing.assert_close(exact(x), model(x), rtol=0, atol=1e-6 if isinstance(model, Stack) else 0)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_its_owners_run_forwards_of_their_own() -> None:
    model = vit()
    exact = exact_copy(model, plan_for(model, recipe([ATTENTION])), images())
    changed = {path for path, module in exact.named_modules() if type(module) is not type(model.get_submodule(path))}
    assert changed == {"blocks.0.attn", "blocks.1.attn"}
    assert [name for name, _ in exact.named_parameters()] == [name for name, _ in model.named_parameters()]


@torch.no_grad()
def test_a_fault_in_the_surgery_shows_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = token_net("matmul")
    plan = plan_for(model, recipe([ATTENTION]))
    open_core = CoreOpener.open

    def perturbed(*args: object) -> object:
        opened = open_core(*args)  # type: ignore[arg-type]
        opened.exact.update(opened.perturbed[0])
        return opened

    monkeypatch.setattr(CoreOpener, "open", perturbed)
    assert not torch.equal(exact_copy(model, plan, images())(images()), model(images()))
