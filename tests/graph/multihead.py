"""An `nn.MultiheadAttention`, what it is called with, and the ways to open it; for the tests beside this file."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from reparam.graph.finders.base import Scene
from reparam.graph.finders.multihead import find_multihead
from reparam.graph.multihead import open_multihead, put_multihead
from reparam.ops.binary_attention import BinaryLinearAttention, BinaryLinearAttentionOptions
from reparam.ops.open_multihead import SoftmaxCore
from reparam.ops.site import Site
from reparam.trace.probe import probe

WIDTH, HEADS = 8, 2
FLAGS = torch.tensor([[False, False, False, True, True]] * 2 + [[False] * 5])


def sequences(*, batch_first: bool = True, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(batch, tokens, WIDTH, generator=generator) for tokens in (5, 4)]
    x, y = (t if batch_first else t.transpose(0, 1).contiguous() for t in pair)
    return x, y


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    attn = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options}).eval()
    for bias in (attn.in_proj_bias, attn.out_proj.bias):
        if bias is not None:
            nn.init.normal_(bias)
    return attn


def site_of(model: nn.Module, *args: Tensor) -> Site:
    (site,) = find_multihead(Scene(model, probe(model, args)))
    return site


def opened_in(model: nn.Module, *args: Tensor, path: str = "attn", core: nn.Module | None = None) -> ExitStack:
    """Puts the unfolded module in place; leaving the result takes it out again."""
    undo, dense = ExitStack(), model.get_submodule(path)
    assert isinstance(dense, nn.MultiheadAttention)
    calls = probe(model, args).calls_of(path)
    put_multihead(model, path, open_multihead(dense, calls, core or SoftmaxCore(dense.dropout)), undo)
    return undo


def binary_core(model: nn.Module, *args: Tensor, path: str = "attn") -> BinaryLinearAttention:
    (site,) = [s for s in find_multihead(Scene(model, probe(model, args))) if s.path == path]
    assert site.attention is not None
    options = BinaryLinearAttentionOptions(conv_kernel=0)
    return BinaryLinearAttention.from_dense(nn.Identity(), site, options)
