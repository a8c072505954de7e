"""A core gets the queries, keys and values of the model, whatever the layout: an exact one gives the model's output.

The oracle is a softmax attention of (batch, heads, tokens, width) that is put where the operator is, at the size of the
example input, for other numbers of images, and for another number of tokens.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.site import AttentionForm
from tests.pico import ATTENTION, SPELLINGS, convert, images, recipe, token_net

Core = Callable[[Tensor, Tensor, Tensor], Tensor]
#: Their scale is a tensor, which a form cannot hold.
_WITHOUT_SCALE = {"learned scale", "cosine"}


def _windowed(core: Core, *, dim: int = 1, merged: int = 0) -> Core:
    """A core over windows of four tokens; their axis stands at `dim`, and `merged` leading axes become one."""

    def run(*qkv: Tensor) -> Tensor:
        cut = [t.unflatten(2, (-1, 4)).movedim(2, dim) for t in qkv]
        lead = cut[0].shape[: merged + 1]
        out = core(*(t.flatten(0, merged) for t in cut)).unflatten(0, lead)
        return out.movedim(dim, 2).flatten(2, 3)

    return run


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.5).softmax(-1) @ v


def _one_key_head(equation: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum(equation, q if equation.startswith("bh") else q.transpose(1, 2), k[:, 0]).softmax(-1)
    return torch.einsum("bhnm,bmd->bhnd", weights, v[:, 0])


def _heads_in_front(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    turned = (t.transpose(0, 1).flatten(0, 1) for t in (q, k, v))
    return _plain(*turned).unflatten(0, (q.shape[1], -1)).transpose(0, 1)


def _tokens_in_front(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.permute(2, 0, 1, 3) for t in (q, k, v))
    weights = torch.einsum("nbhd,mbhd->nmbh", q, k).softmax(1)
    return torch.einsum("nmbh,mbhd->nbhd", weights, v).permute(1, 2, 0, 3)


def _merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _plain(*(t.flatten(0, 1) for t in (q, k, v))).unflatten(0, q.shape[:2])


LAYOUTS: dict[str, Core] = {
    "windows in front of the heads": _windowed(_plain),
    "windows behind the heads": _windowed(_plain, dim=2),
    "windows in the batch": _windowed(_plain, merged=1),
    "windows and heads in the batch": _windowed(_plain, merged=2),
    "fused windows": _windowed(lambda q, k, v: F.scaled_dot_product_attention(q, k, v)),
    "heads in front of the batch": lambda *qkv: _plain(*(t.transpose(0, 1) for t in qkv)).transpose(0, 1),
    "merged heads": _merged,
    "merged heads in front of the batch": _heads_in_front,
    "tokens in front": _tokens_in_front,
    "channels in front": lambda q, k, v: (v.mT @ (q @ k.mT).softmax(-1).mT).mT,
    "implied result": lambda q, k, v: torch.einsum("...nm,...md", (q @ k.mT).softmax(-1), v).mT,
    "keys without heads": lambda *qkv: _one_key_head("bhnd,bmd->bhnm", *qkv),
    "keys without heads and heads last": lambda *qkv: _one_key_head("bnhd,bmd->bhnm", *qkv),
    "fewer keys": lambda q, k, v: _plain(q, k[:, :, ::2], v[:, :, ::2]),
    "wider values": lambda q, k, v: _plain(q, k, torch.cat([v, 2 * v], -1))[..., :4],
    "repeated key heads": lambda q, k, v: _plain(q, *(t[:, :1].repeat_interleave(2, 1) for t in (k, v))),
}


class Laid(nn.Module):
    def __init__(self, core: Core) -> None:
        super().__init__()
        self.qkv, self.core_of = nn.Linear(8, 24), core

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.core_of(q, k, v).transpose(1, 2).flatten(2)


class Softmax(nn.Module):
    """What a form says, computed in the plainest way."""

    def __init__(self, form: AttentionForm) -> None:
        super().__init__()
        self.form = form

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert (q.shape[1], q.shape[3], v.shape[3]) == (self.form.heads, self.form.head_dim, self.form.value_dim)
        assert k.shape[1] == v.shape[1] == (self.form.key_heads or self.form.heads)
        assert self.form.scale is not None
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        return (self.form.scale * q @ k.mT).softmax(-1) @ v


def exact(model: nn.Module, example: Tensor) -> nn.Module:
    """The converted model with the oracle for its cores."""
    convert(model, recipe([ATTENTION]), example)
    for path, module in list(model.named_modules()):
        if isinstance(module, BinaryLinearAttention):
            model.set_submodule(path, Softmax(module.form))
    return model


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return token_net(Laid(LAYOUTS[name]) if name in LAYOUTS else name)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", [*LAYOUTS, *(name for name in SPELLINGS if name not in _WITHOUT_SCALE)])
@torch.no_grad()
def test_an_exact_core_gives_the_models_output_at_other_sizes_too(name: str, batch: int) -> None:
    dense, model = make(name), exact(make(name), images(batch))
    for x in (images(batch), images(3, seed=1), images(5, width=24), images(1, height=32, width=32)):
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["merged heads", "windows and heads in the batch"])
def test_heads_in_the_batch_are_told_from_one_image_as_from_two(name: str) -> None:
    shapes = [
        [tuple(p.shape) for p in convert(make(name), recipe([ATTENTION]), images(batch)).parameters()]
        for batch in (1, 2)
    ]
    assert shapes[0] == shapes[1]


def test_keys_and_values_with_different_heads_are_refused() -> None:
    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bmd->bhnm", q, k[:, 0]).softmax(-1), v)

    with pytest.raises(Exception, match="its keys have 1 heads and its values 2"):
        convert(token_net(Laid(core)), recipe([ATTENTION]))
