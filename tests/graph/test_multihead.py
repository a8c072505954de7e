import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from reparam.errors import RewriteError
from reparam.graph.finders.base import Scene
from reparam.graph.finders.multihead import find_multihead
from reparam.graph.verify_multihead import check_exact_multihead
from reparam.ops.open_multihead import OpenMultiheadAttention, SoftmaxCore
from reparam.ops.site import TokenGrid
from reparam.trace.probe import probe
from tests.graph.multihead import FLAGS, HEADS, WIDTH, attention, binary_core, opened_in, sequences, site_of


class Calls(nn.Module):
    """Calls one attention in a given way; `y` is another sequence of other length."""

    def __init__(self, attn: nn.MultiheadAttention, call: Callable[..., Any]) -> None:
        super().__init__()
        self.attn, self.call = attn, call

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.call(self.attn, x, y)
        return out


CALLS: dict[str, Callable[..., Any]] = {
    "self": lambda attn, x, y: attn(x, x, x)[0],
    "self, no weights": lambda attn, x, y: attn(x, x, x, need_weights=False)[0],
    "by name": lambda attn, x, y: attn(value=x, key=x, query=x)[0],
    "cross": lambda attn, x, y: attn(x, y, y)[0],
    "cross, no weights": lambda attn, x, y: attn(x, y, y, need_weights=False)[0],
    "positions on queries and keys": lambda attn, x, y: attn(x + 1, x + 1, x)[0],
    "weights per head": lambda attn, x, y: attn(x, x, x, average_attn_weights=False)[0],
    "self and cross": lambda attn, x, y: attn(x, x, x)[0] + attn(x, y, y)[0],
    "without and with a mask": lambda attn, x, y: (
        attn(x, x, x, need_weights=False)[0] + attn(x, x, x, attn_mask=torch.eye(5))[0]
    ),
}


@pytest.fixture(autouse=True)
def slow_path() -> Any:
    """torch's fast path gives other bits than its own documented operations."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


#: The original projects keys and values of the second call in one product, which some libraries (MKL on AMD) round
#: otherwise than two; the values must agree in double precision.
BY_LAYOUT = {"self and cross"}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dropout": 0.4}, {"batch_first": False}], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_unfolded_with_softmax_it_gives_the_originals_bits(name: str, options: Any, training: bool) -> None:
    model = Calls(attention(**options), CALLS[name]).train(training)
    x, y = sequences(batch_first=options.get("batch_first", True))
    original = copy.deepcopy(model)
    opened_in(model, x, y)
    assert isinstance(model.attn, OpenMultiheadAttention)

    def run(model: nn.Module, dtype: torch.dtype) -> Tensor:
        torch.manual_seed(1)
        result: Tensor = model.to(dtype)(x.to(dtype), y.to(dtype))
        return result

    if name in BY_LAYOUT:
        torch.testing.assert_close(run(model, torch.float64), run(original, torch.float64), rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(run(model, torch.float32), run(original, torch.float32))


@pytest.mark.parametrize("batch_first", [True, False])
def test_keys_and_values_of_other_widths_keep_their_own_projections(batch_first: bool) -> None:
    attn = attention(kdim=6, vdim=4, batch_first=batch_first)
    model = Calls(attn, lambda attn, x, y: attn(x, y[..., :6], y[..., :4])[0])
    x, y = sequences(batch_first=batch_first)
    expected = model(x, y)
    opened_in(model, x, y)
    assert torch.equal(model(x, y), expected)
    assert [model.attn.q_proj.in_features, model.attn.k_proj.in_features, model.attn.v_proj.in_features] == [8, 6, 4]


def test_a_sequence_without_a_batch_is_taken() -> None:
    model = Calls(attention(), CALLS["self"])
    x, y = (t[0] for t in sequences())
    expected = model(x, y)
    opened_in(model, x, y)
    assert torch.equal(model(x, y), expected)
    assert model(x, y).shape == (5, 8)


MASKS: dict[str, tuple[dict[str, Any], str]] = {
    "flags": ({"attn_mask": torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) > 0.8}, "mask"),
    "numbers": ({"attn_mask": torch.linspace(-1, 1, 25).view(5, 5)}, "mask"),
    "per head": ({"attn_mask": torch.linspace(-1, 1, 150).view(6, 5, 5)}, "mask"),
    "causal": ({"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "is_causal": True}, "causal"),
    "padding": ({"key_padding_mask": FLAGS}, "mask"),
    "both": ({"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "key_padding_mask": FLAGS}, "mask"),
    "both, causal": (
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "key_padding_mask": FLAGS, "is_causal": True},
        "causal",
    ),
}


class Masked(nn.Module):
    def __init__(self, masks: dict[str, Any], **options: Any) -> None:
        super().__init__()
        self.attn, self.options = attention(), options
        self.flags = {name: value for name, value in masks.items() if not isinstance(value, Tensor)}
        self.masks = [name for name, value in masks.items() if isinstance(value, Tensor)]
        for name in self.masks:
            self.register_buffer(name, masks[name])

    def forward(self, x: Tensor) -> Tensor:
        masks = {name: getattr(self, name) for name in self.masks}
        out: Tensor = self.attn(x, x, x, **masks, **self.flags, **self.options)[0]
        return out


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_masks_reach_the_softmax_and_are_named_as_dropped(name: str, need_weights: bool) -> None:
    masks, kind = MASKS[name]
    model, x = Masked(masks, need_weights=need_weights), sequences()[0]
    expected, form = model(x), site_of(model, x).attention
    assert form is not None
    assert kind in form.dropped
    calls = probe(model, x).calls_of("attn")
    check_exact_multihead(model.attn, calls, path="attn")
    opened_in(model, x)
    assert torch.equal(model(x), expected)


def test_a_mask_made_from_the_input_and_a_learned_bias_are_told_apart() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.bias = attention(), attention(), nn.Parameter(torch.zeros(5, 5))

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            x = self.first(x, x, x, key_padding_mask=padding)[0]
            return self.second(x, x, x, attn_mask=self.bias)[0]

    sites = find_multihead(Scene(Both(), probe(Both(), (sequences()[0], FLAGS))))
    assert [site.attention and site.attention.dropped for site in sites] == [("input_mask",), ("bias",)]


def test_any_other_core_gets_no_masks_and_computes_its_own_formula() -> None:
    masks, _ = MASKS["both"]
    model, x = Masked(masks), sequences()[0]
    attn, core = model.attn, binary_core(model, x)
    q, k, v = (
        t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for t in nn.functional.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    )
    expected = attn.out_proj(core(q, k, v).transpose(1, 2).flatten(2))
    opened_in(model, x, core=core)
    torch.testing.assert_close(model(x), expected)


def test_the_form_tells_heads_widths_tokens_and_scale() -> None:
    form = site_of(Calls(attention(dropout=0.3), CALLS["cross, no weights"]), *sequences()).attention
    assert form is not None
    assert (form.heads, form.head_dim, form.value_dim, form.query_tokens, form.key_tokens) == (2, 4, 4, 5, 4)
    assert (form.scale, form.is_fused, form.dropout, form.dropped) == (0.5, True, 0.3, ())
    written_out = site_of(Calls(attention(), CALLS["self"]), *sequences()).attention
    assert written_out is not None
    assert not written_out.is_fused


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("pool", ["mean", "first"])
def test_the_grid_and_the_tokens_that_are_read_are_found_in_either_layout(
    batch_first: bool, prefix: int, pool: str
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attn = nn.Conv2d(3, WIDTH, 4, 4), attention(batch_first=batch_first)
            self.token = nn.Parameter(torch.zeros(1, prefix, WIDTH))

        def forward(self, image: Tensor) -> Tensor:
            x = self.stem(image).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
            x = x if batch_first else x.transpose(0, 1)
            x = x + self.attn(x, x, x, need_weights=False)[0]
            tokens = 1 if batch_first else 0
            return x.select(tokens, 0) if pool == "first" else x.mean(tokens)

    form = site_of(Net(), torch.zeros(2, 3, 8, 12)).attention
    assert form is not None
    assert form.grid == TokenGrid(prefix=prefix, height=2, width=3)
    assert form.reads_only_prefix == (prefix == 1 and pool == "first")


class Overriding(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = nn.functional.multi_head_attention_forward(
            x, x, x, WIDTH, HEADS, self.attn.weight, self.attn.bias, None, None, False, 0.0, self.out_proj.weight,
            self.out_proj.bias,
        )[0]  # fmt: skip
        return out


def _tied() -> nn.Module:
    first, second = attention(), attention()
    second.in_proj_weight = first.in_proj_weight
    model = Calls(first, CALLS["cross"])
    model.other = second
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "appended key": (
        lambda: Calls(attention(add_bias_kv=True), CALLS["self"]),
        "it appends a learned key and value to the tokens' own (add_bias_kv)",
    ),
    "appended zeros": (
        lambda: Calls(attention(add_zero_attn=True), CALLS["self"]),
        "it appends a key and a value of zeros to the tokens' own (add_zero_attn)",
    ),
    "own forward": (
        lambda: Calls(Overriding(WIDTH, HEADS), CALLS["self"]),
        "its class overrides the forward of torch.nn.MultiheadAttention, which would be lost",
    ),
    "parametrized": (
        lambda: Calls(parametrizations.weight_norm(attention(), "in_proj_weight"), CALLS["self"]),
        "its weights are computed by a parametrization, which would be lost",
    ),
    "functional": (
        Functional,
        "it calls F.multi_head_attention_forward itself, which is opaque; use torch.nn.MultiheadAttention",
    ),
    "weights read": (
        lambda: Calls(attention(), lambda attn, x, y: attn(x, x, x)[1].mean(-1)),
        "its attention weights are read by 'mean'; call it with need_weights=False",
    ),
    "weights returned": (
        lambda: Calls(attention(), lambda attn, x, y: attn(x, x, x)),
        "the model returns its attention weights, which would no longer exist",
    ),
    "tied and split": (_tied, 'its projections must be split, and it shares parameters with "other"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_unfolded_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    site = site_of(make(), *sequences())
    assert (site.refusal, site.attention) == (reason, None)


def test_parameters_are_the_same_objects_and_their_ties_and_flags_stay() -> None:
    model = _tied()
    model.call = CALLS["self"]
    model.attn.in_proj_bias.requires_grad_(False)
    weight, bias, out = model.attn.in_proj_weight, model.attn.in_proj_bias, model.attn.out_proj.weight
    opened_in(model, *sequences())
    attn = model.attn
    assert attn.in_proj.weight is weight is model.other.in_proj_weight
    assert attn.in_proj.bias is bias
    assert attn.out_proj.weight is out
    assert {type(attn.in_proj), type(attn.out_proj)} == {nn.Linear}
    assert not attn.in_proj.bias.requires_grad


def test_split_projections_hold_the_parts_and_are_frozen_like_the_whole() -> None:
    model = Calls(attention(), CALLS["cross"]).requires_grad_(False)
    dense = model.attn
    opened_in(model, *sequences())
    rows = torch.cat([model.attn.q_proj.weight, model.attn.kv_proj.weight])
    assert torch.equal(rows, dense.in_proj_weight)
    assert not [name for name, p in model.named_parameters() if p.requires_grad]


def test_leaving_takes_everything_back() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True), 2).eval()
    x, before = sequences()[0], [*encoder.modules()]
    undo = opened_in(encoder, x, path="layers.0.self_attn")
    assert not encoder.use_nested_tensor
    undo.close()
    assert encoder.use_nested_tensor
    assert [*encoder.modules()] == before


def test_a_module_at_two_paths_is_swapped_at_both() -> None:
    model = Calls(attention(), CALLS["self"])
    model.alias = model.attn
    opened_in(model, *sequences())
    assert model.alias is model.attn
    assert isinstance(model.attn, OpenMultiheadAttention)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda attn, x, y: attn(x, y, y, need_weights=False), "cross attention"),
        (lambda attn, x, y: attn(x, x, x), "need_weights"),
        (lambda attn, x, y: attn(x, x, x, attn_mask=torch.zeros(5, 5), need_weights=False), "attn_mask"),
        (lambda attn, x, y: attn(x, x, x, key_padding_mask=FLAGS, need_weights=False), "key_padding_mask"),
    ],
    ids=["cross", "weights", "mask", "padding"],
)
def test_a_call_that_was_not_recorded_is_an_error_not_another_result(call: Callable[..., Any], words: str) -> None:
    model, args = Calls(attention(), CALLS["self, no weights"]), sequences()
    opened_in(model, *args)
    with pytest.raises(RuntimeError, match=rf"for self attention with \(no mask and no weights\), got {words}\. Conv"):
        call(model.attn, *args)


def test_a_perturbed_core_must_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = Calls(attention(), CALLS["self"]), sequences()
    calls = probe(model, args).calls_of("attn")
    monkeypatch.setattr("reparam.graph.verify_multihead._PERTURBATION", 1.0)
    with pytest.raises(RewriteError, match='"attn": its output does not depend on the core'):
        check_exact_multihead(model.attn, calls, path="attn")


def test_weights_that_would_hide_a_fault_are_not_the_ones_it_is_checked_with() -> None:
    model, args = Calls(attention(), CALLS["self"]), sequences()
    with torch.no_grad():
        model.attn.out_proj.weight.zero_()
    check_exact_multihead(model.attn, probe(model, args).calls_of("attn"), path="attn")


def test_another_head_split_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = Calls(attention(), CALLS["self"]), sequences()
    calls = probe(model, args).calls_of("attn")
    split = OpenMultiheadAttention._split_heads
    monkeypatch.setattr(OpenMultiheadAttention, "_split_heads", lambda self, x: split(self, x).flip(1))
    with pytest.raises(RewriteError, match='"attn": unfolded, its output in evaluation mode is not the original'):
        check_exact_multihead(model.attn, calls, path="attn")


def test_a_fault_that_shows_in_training_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = Calls(attention(dropout=0.5), CALLS["self"]), sequences()
    monkeypatch.setattr("reparam.graph.verify_multihead.SoftmaxCore", lambda dropout: SoftmaxCore(0.0))
    with pytest.raises(RewriteError, match='"attn": unfolded, its output in training mode is not the original'):
        check_exact_multihead(model.attn, probe(model, args).calls_of("attn"), path="attn")


def test_checking_avoids_torchs_fast_path_and_restores_it_and_the_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.mha.set_fastpath_enabled(True)
    monkeypatch.setattr(torch, "_native_multi_head_attention", lambda *_: pytest.fail("took the fast path"))
    model, args = Calls(attention(dropout=0.5), CALLS["self"]), sequences()
    model.attn.train().out_proj.eval()
    check_exact_multihead(model.attn, probe(model, args).calls_of("attn"), path="attn")
    assert torch.backends.mha.get_fastpath_enabled()
    assert (model.attn.training, model.attn.out_proj.training) == (True, False)
