"""Verification must catch a wrong rewrite, say where, and leave the model as it was."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import RewriteError
from reparam.graph import attention_surgery
from reparam.graph import rewrite as rewriting
from reparam.graph.attention_match import AttentionMatch, Operand
from reparam.graph.attention_surgery import OpenedCore, install_core, open_core, remove_core, running
from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.graph.rewrite import rewrite
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.dense import DenseAttention
from reparam.ops.shift import ShiftLinear
from reparam.ops.site import AttentionForm
from reparam.trace.probe import probe
from tests.pico import (
    ATTENTION,
    DROPPED,
    FULL,
    KEEP_HEAD,
    LINEAR,
    SPELLINGS,
    Attention,
    images,
    plan_for,
    recipe,
    token_net,
    vit,
)

Sabotage = Callable[[AttentionMatch], AttentionMatch]


def swap_q_and_k(match: AttentionMatch) -> AttentionMatch:
    return dataclasses.replace(match, q=match.k, k=match.q)


def take_q_for_v(match: AttentionMatch) -> AttentionMatch:
    return dataclasses.replace(match, v=match.q)


def swap_heads_and_tokens(match: AttentionMatch) -> AttentionMatch:
    """Of square layouts nothing but the numbers would tell."""
    swapped = Operand(match.k.ref, (0, 2, 1, 3))
    return dataclasses.replace(match, k=swapped)


def sabotage(monkeypatch: pytest.MonkeyPatch, how: Sabotage, *, only: str = "") -> None:
    """Makes the surgery on paths that end with `only` go wrong."""
    honest = attention_surgery._chosen

    def match(matches: Any, number: int, graph: Any, path: str) -> AttentionMatch:
        found = honest(matches, number, graph, path)
        return how(found) if path.endswith(only) else found

    monkeypatch.setattr(attention_surgery, "_chosen", match)


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    modules = [(path, id(m), type(m), m.training, list(m._forward_hooks)) for path, m in model.named_modules()]
    return modules, [(name, id(p)) for name, p in model.named_parameters()], list(model.state_dict())


@pytest.mark.parametrize("spelling", ["scale after", "permuted keys", "einsum with heads last", "bias"])
@pytest.mark.parametrize("how", [swap_q_and_k, take_q_for_v, swap_heads_and_tokens])
def test_a_wrong_surgery_is_caught_and_the_model_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, spelling: str, how: Sabotage
) -> None:
    model = token_net(spelling)
    plan = plan_for(model, recipe([ATTENTION]))
    before, output = snapshot(model), model(images())
    sabotage(monkeypatch, how)
    with pytest.raises(RewriteError, match=r'"attn" \(Attention\): with an exact core .*operator = "keep"'):
        rewrite(model, plan, images())
    assert snapshot(model) == before
    assert torch.equal(model(images()), output)


def test_a_fault_in_a_later_owner_takes_the_earlier_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit().train()
    plan = plan_for(model, recipe([LINEAR], [ATTENTION]))
    before = snapshot(model)
    sabotage(monkeypatch, swap_q_and_k, only="blocks.1.attn")
    with pytest.raises(RewriteError, match=r'"blocks\.1\.attn"'):
        rewrite(model, plan, images())
    assert snapshot(model) == before


def test_a_core_that_the_output_does_not_depend_on_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Attention):
        """Generated classes are kept for each class, and this one must not be met again."""

    model = token_net(Own())
    plan = plan_for(model, recipe([ATTENTION]))
    monkeypatch.setattr("reparam.graph.exact.perturbed", lambda out: out)
    with pytest.raises(RewriteError, match="its output does not depend on the core that was put in"):
        rewrite(model, plan, images())


class NormBehindCore(Attention):
    """A norm behind the core, as in differential attention, undoes whatever scales the core's output as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(torch.nn.functional.normalize(out, dim=-1).transpose(1, 2).flatten(2))


def test_a_norm_behind_the_core_does_not_make_it_look_unused() -> None:
    model = token_net(NormBehindCore())
    rewrite(model, plan_for(model, recipe([ATTENTION])), images())
    assert type(model.attn.core) is BinaryLinearAttention


def test_weights_that_hide_a_fault_do_not_hide_it_from_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    model = token_net("scale after")
    nn.init.zeros_(model.attn.proj.weight)
    plan = plan_for(model, recipe([ATTENTION]))
    sabotage(monkeypatch, swap_q_and_k)
    with pytest.raises(RewriteError, match="with an exact core"):
        rewrite(model, plan, images())


def test_without_verification_a_wrong_surgery_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would prove nothing if something else caught the sabotage."""
    model = token_net("scale after")
    plan = plan_for(model, recipe([ATTENTION]))
    sabotage(monkeypatch, swap_q_and_k)
    rewrite(model, plan, images(), verify=False)


def open_attn(model: nn.Module) -> tuple[list[AttentionForm], OpenedCore]:
    trace = probe(model, images())
    sites = [s for s in find_sites(Scene(model, trace)) if s.kind == "attention"]
    forms = {site.number: site.attention for site in sites if site.attention}
    return list(forms.values()), open_core(model.attn, trace.calls_of("attn"), "attn", forms)


#: Written out canonically, their products have operands in another order, which some libraries round otherwise (MKL on
#: AMD): these must agree in double precision, as `verify` asks, all others to the bit.
TRANSPOSED = {"keys on the left", "transposed weights"}


@pytest.mark.parametrize("spelling", [*SPELLINGS, *DROPPED, "two cores", "cascade"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_exact_products_give_the_originals_bits_in_both_modes(spelling: str, training: bool) -> None:
    model = token_net(spelling)
    _, opened = open_attn(model)
    model.train(training)

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        torch.manual_seed(2)
        return [model.to(dtype)(images(batch).to(dtype)) for batch in (2, 3)]

    expected, wide = run(torch.float32), run(torch.float64)
    with running(model.attn, opened.exact):
        got, got_wide = run(torch.float32), run(torch.float64)
    if spelling in TRANSPOSED:
        torch.testing.assert_close(got_wide, wide, rtol=1e-12, atol=1e-12)
    else:
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(run(torch.float32), expected, strict=True))


@pytest.mark.parametrize("spelling", sorted(set(SPELLINGS) - {"learned scale", "cosine"}))
def test_plain_softmax_attention_in_the_cores_place_gives_the_originals_output(spelling: str) -> None:
    """An oracle of its own: the operands in the promised layout, whatever layout the model keeps them in."""
    model = token_net(spelling)
    (form,), opened = open_attn(model)
    expected, cls = model(images(3)), type(model.attn)
    install_core(model.attn, {0: DenseAttention(form).eval()}, opened)
    torch.testing.assert_close(model(images(3)), expected)
    remove_core(model.attn, opened, cls)
    assert torch.equal(model(images(3)), expected)


def test_two_cores_are_told_apart() -> None:
    model = token_net("two cores")
    forms, opened = open_attn(model)
    expected = model(images())
    install_core(model.attn, {n: DenseAttention(form).eval() for n, form in enumerate(forms)}, opened)
    torch.testing.assert_close(model(images()), expected)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda self, x: torch.nn.functional.linear(x, self.weight) * float("nan"), "gives values that are not finite"),
        (
            lambda self, x: torch.nn.functional.linear(x, self.weight)[..., :1],
            r"gives shape \(.*, 1\), wanted \(.*, 48\)",
        ),
        (lambda self, x: torch.nn.functional.linear(x, self.weight), "no gradient reaches bias of shift_linear"),
    ],
    ids=["not finite", "wrong shape", "unused parameter"],
)
def test_an_operator_that_misbehaves_is_caught_and_every_step_taken_back(
    monkeypatch: pytest.MonkeyPatch, forward: Callable[..., Tensor], words: str
) -> None:
    model = vit()
    plan = plan_for(model, recipe([ATTENTION], [KEEP_HEAD, LINEAR]))
    before = snapshot(model)
    monkeypatch.setattr(ShiftLinear, "forward", forward)
    with pytest.raises(RewriteError, match=rf'"blocks\.0\.attn\.qkv": .*{words}|{words}'):
        rewrite(model, plan, images())
    assert snapshot(model) == before


def test_an_operator_that_raises_is_caught_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise ValueError("no such grid")

    model = vit()
    plan = plan_for(model, recipe([ATTENTION]))
    before = snapshot(model)
    monkeypatch.setattr(BinaryLinearAttention, "forward", explode)
    with pytest.raises(RewriteError, match="binary_linear_attention does not run on its recorded input: no such grid"):
        rewrite(model, plan, images())
    assert snapshot(model) == before


def test_a_core_whose_parameters_get_no_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    plan = plan_for(model, recipe([ATTENTION]))
    monkeypatch.setattr(BinaryLinearAttention, "forward", lambda self, q, k, v: v)
    with pytest.raises(RewriteError, match="no gradient reaches threshold_q, threshold_k, token_conv"):
        rewrite(model, plan, images())


def test_softmax_that_is_left_where_the_plan_converts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    plan = plan_for(model, recipe([ATTENTION]))
    monkeypatch.setattr(rewriting, "_put_cores", lambda *_, **__: None)
    with pytest.raises(RewriteError, match=r"softmax attention is left in blocks\.0\.attn, blocks\.1\.attn"):
        rewrite(model, plan, images())


def test_verification_leaves_gradients_and_frozen_parameters_alone() -> None:
    model = vit().requires_grad_(False)
    rewrite(model, plan_for(model, FULL), images())
    assert all(p.grad is None for p in model.parameters())
    trainable = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert "latent" not in trainable
    assert {"threshold_q", "threshold_k"} <= trainable
