"""Generated forwards: how they are called, what their source may contain, how their classes are shared and copied."""

import copy
import math
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from reparam.graph.attention_surgery import install_core, open_core, remove_core, running
from reparam.graph.call_pattern import VARIES, join_call, split_call
from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.ops.base import Operator
from reparam.trace.probe import probe
from tests.pico import ATTENTION, Attention, binary_attention, convert, images, recipe, token_net, vit


@fx.wrap
def shifted(x: Tensor, amount: int) -> Tensor:
    """A function of the user's own that graphs must call and not look into."""
    return x + amount if amount > 0 else x


class Rich(Attention):
    """Constants, types, slices and functions that must come through generated source unharmed."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clamp(-math.inf, math.inf).to(torch.float32) * math.pi
        y = torch.where(y == float("inf"), torch.zeros_like(y, device=y.device), y)
        y = shifted(y, 2)[..., None, :].squeeze(-2)[:, 0:]
        y = torch.nn.functional.gelu(y, approximate="tanh") + torch.arange(8, dtype=y.dtype, device=y.device)
        return super().forward(y)


def with_exact_core(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    trace = probe(model, x)
    site = next(s for s in find_sites(Scene(model, trace)) if s.kind == "attention")
    assert site.attention is not None
    owner = model.get_submodule(site.path)
    before = model(x)
    opened = open_core(owner, trace.calls_of(site.path), site.path, {0: site.attention})
    with running(owner, opened.exact):
        return before, model(x)


def test_constants_types_slices_and_wrapped_functions_come_through() -> None:
    before, after = with_exact_core(token_net(Rich()), images())
    assert torch.equal(before, after)


def test_modules_with_equal_forwards_share_one_class_and_others_do_not() -> None:
    model = convert(vit(), recipe([ATTENTION]))
    first, second = (block.attn for block in model.blocks)
    assert type(first) is type(second)
    assert type(convert(vit(num_heads=1), recipe([ATTENTION])).blocks[0].attn) is not type(first)


def test_the_class_of_untouched_modules_is_not_changed() -> None:
    before = type(vit().blocks[0].attn).forward
    model = convert(vit(), recipe([ATTENTION]))
    assert type(vit().blocks[0].attn).forward is before
    assert type(model.blocks[0].attn).forward is not before


def test_a_swapped_module_pickles_alone_and_keeps_its_plain_attributes() -> None:
    owner = convert(token_net("fused"), recipe([ATTENTION])).attn
    owner.note = {"kept": [1, 2]}
    loaded = pickle.loads(pickle.dumps(owner))
    x = torch.randn(1, 16, 8)
    assert loaded.note == {"kept": [1, 2]}
    assert type(loaded) is type(owner)
    assert torch.equal(loaded(x), owner(x))


class Slotted(Attention):
    """Has state of its own making, as some libraries do."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "stamp": 1}

    def __setstate__(self, state: dict[str, object]) -> None:
        assert state.pop("stamp") == 1
        super().__setstate__(state)


def test_own_state_methods_of_a_module_are_used_by_copies() -> None:
    owner = convert(token_net(Slotted()), recipe([ATTENTION])).attn
    x = torch.randn(1, 16, 8)
    assert torch.equal(copy.deepcopy(owner)(x), owner(x))


def test_methods_that_call_forward_by_super_and_new_attributes_still_work() -> None:
    owner = convert(token_net("fused"), recipe([ATTENTION])).attn
    assert owner.extra_repr() == ""
    owner.proj = nn.Identity()
    assert owner(torch.randn(1, 16, 8)).shape == (1, 16, 8)


def test_installing_and_removing_a_core_leaves_no_trace() -> None:
    model = token_net("fused")
    trace = probe(model, images())
    (site,) = [s for s in find_sites(Scene(model, trace)) if s.kind == "attention"]
    assert site.attention is not None
    opened = open_core(model.attn, trace.calls_of("attn"), "attn", {0: site.attention})
    before, cls = vars(model.attn).keys(), type(model.attn)
    install_core(model.attn, {0: nn.Identity()}, opened)
    assert model.attn.core is not None
    assert type(model.attn) is not cls
    remove_core(model.attn, opened, cls)
    assert type(model.attn) is cls
    assert vars(model.attn).keys() == before
    assert not hasattr(model.attn, "core")
    install_core(model.attn, {0: nn.Identity()}, opened)
    assert [name for name, _ in model.attn.named_children()][-1] == "core"


@pytest.mark.parametrize(
    ("args", "kwargs", "varying"),
    [
        ((1, None, True, "a"), {}, [1]),
        ((), {"x": 2.5, "flag": False}, [2.5]),
        (([1, (2, {"k": 3})],), {"more": None}, [1, 2, 3]),
        ((), {}, []),
    ],
)
def test_a_call_is_split_into_what_varies_and_its_pattern_and_put_together_again(
    args: tuple[object, ...], kwargs: dict[str, object], varying: Sequence[object]
) -> None:
    pattern, leaves, spec = split_call(args, kwargs)
    assert leaves == varying
    assert sum(value is VARIES for value in pattern.fixed) == len(varying)
    assert join_call(pattern, leaves, spec) == (args, kwargs)


def test_patterns_are_equal_for_other_numbers_and_differ_for_other_flags_and_nesting() -> None:
    def pattern(*args: object, **kwargs: object) -> object:
        return split_call(args, kwargs)[0]

    assert pattern(1, True) == pattern(2, True)
    assert hash(pattern(1, True)) == hash(pattern(2, True))
    assert len({pattern(1, True), pattern(1, False), pattern(1, None), pattern([1], True), pattern(a=1, b=True)}) == 5


def test_a_pattern_survives_copies_and_pickling() -> None:
    pattern = split_call((1, None), {"flag": True})[0]
    assert copy.deepcopy(pattern) == pickle.loads(pickle.dumps(pattern)) == pattern
    assert copy.deepcopy(pattern).fixed[0] is VARIES


class Keywords(Attention):
    """Takes an optional mask, a flag, a number and a nested argument."""

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None, *, flag: bool = True, scale: float = 1.0, more: Any = ()
    ) -> tuple[Tensor, dict[str, Any]]:
        q, k, v = self.qkv(x * scale + sum(more)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT
        if mask is not None:
            scores = scores + mask
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.proj(out) if flag else out, {"scale": scale, "none": None}


class CallsWithKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Keywords()

    def forward(self, x: Tensor) -> Tensor:
        out, rest = self.inner(x, None, flag=False, scale=2.0, more=[x, 0.5])
        assert rest["none"] is None
        return out + self.inner(out)[0] * rest["scale"]


def test_an_owner_keeps_its_optional_arguments_flags_and_results() -> None:
    model = token_net(CallsWithKeywords())
    dense = copy.deepcopy(model)
    convert(model, recipe([ATTENTION]))
    out, rest = model.attn.inner(torch.ones(2, 16, 8), None, flag=False, scale=3.0, more=[torch.ones(8), 0.25])
    assert out.shape == (2, 16, 8)
    assert rest == {"scale": 3.0, "none": None}
    assert model(images()).shape == dense(images()).shape


def test_a_call_that_was_not_converted_raises_and_names_the_known_ones() -> None:
    model = convert(token_net(CallsWithKeywords()), recipe([ATTENTION]))
    with pytest.raises(RuntimeError, match=r"Keywords was converted for calls with .*; .*, got \(tensor"):
        model.attn.inner(torch.ones(2, 16, 8), torch.zeros(16, 16))


class Caches(Attention):
    """Keeps a table in a plain attribute while evaluating, as several timm models do."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}
        self.table = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x + self.table)
        if "table" not in self.cache:
            self.cache["table"] = self.table + 0.0
        return super().forward(x + self.cache["table"])


def test_a_cache_of_the_owner_holds_no_trace_of_the_tracing() -> None:
    model = token_net(Caches())
    convert(model, recipe([ATTENTION]))
    assert all(isinstance(value, Tensor) and not value.is_meta for value in model.attn.cache.values())
    copy.deepcopy(model.eval())
    assert torch.equal(model.eval()(images()), model.train()(images()))


class InPlace(Attention):
    """Statements whose results nobody reads by name, a buffer that is computed with, and a view after the core."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y.add_(self.offset * 2)
        q, k, v = self.qkv(y).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = (q @ k.mT).softmax(-1) @ v
        return self.proj(out.view(x.shape[0], -1, 4).unflatten(1, (2, 16)).transpose(1, 2).flatten(2))


def test_statements_in_place_buffers_and_views_survive() -> None:
    model = token_net(InPlace())
    x = torch.randn(2, 16, 8)
    q, k, v = model.attn.qkv(x + 2).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    expected = model.attn.proj(binary_attention(q, k, v).transpose(1, 2).flatten(2))
    keys = set(model.state_dict())
    convert(model, recipe([ATTENTION]))
    torch.testing.assert_close(model.attn(x), expected, rtol=1e-5, atol=1e-6)
    added = set(model.state_dict()) - keys
    assert all(name.startswith("attn.core.") for name in added)


class Crowded(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.core(x))


def test_an_owner_that_has_a_core_already_keeps_it() -> None:
    model = token_net(Crowded())
    convert(model, recipe([ATTENTION]))
    assert isinstance(model.attn.core, nn.Linear)
    assert isinstance(model.attn.core_1, Operator)


def test_an_attention_that_is_called_twice_gets_one_core_for_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Attention()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    model = convert(token_net(Twice()), recipe([ATTENTION]))
    cores = [m for m in model.modules() if isinstance(m, Operator)]
    assert len(cores) == 1
    counted: list[int] = []
    cores[0].register_forward_hook(lambda *_: counted.append(1))
    model(images())
    assert len(counted) == 2
