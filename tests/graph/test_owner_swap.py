"""Generated forwards: what their source may contain, and how their classes are shared, copied and pickled."""

import copy
import math
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn

from reparam.graph.attention_surgery import install_core, installed, open_core
from reparam.graph.call_pattern import VARIES, join_call, split_call
from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.ops.dense import DenseAttention
from reparam.trace.probe import probe
from tests.pico import ATTENTION, Attention, convert, images, recipe, token_net, vit


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
    opened = open_core(owner, trace.calls_of(site.path), site.path)
    with installed(owner, DenseAttention(site.attention).eval(), opened):
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
    opened = open_core(model.attn, trace.calls_of("attn"), "attn")
    before, cls = vars(model.attn).keys(), type(model.attn)
    with installed(model.attn, nn.Identity(), opened):
        assert model.attn.core is not None
        assert type(model.attn) is not cls
    assert type(model.attn) is cls
    assert vars(model.attn).keys() == before
    assert not hasattr(model.attn, "core")
    install_core(model.attn, nn.Identity(), opened)
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
