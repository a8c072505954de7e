"""OpenMultiheadAttention: nn.MultiheadAttention with its projections and its core as children.

Before, one opaque operation                     After
    F.multi_head_attention_forward(q, k, v, ...)     out_proj(core(*split_heads(in_proj(x))))

State: `in_proj.*` (3E, E) is the original `in_proj_weight` and `in_proj_bias`, `out_proj.*` the original one. Where
keys do not come from the queries' tensor it is `q_proj.*`, `kv_proj.*`, or `q_proj.*`, `k_proj.*`, `v_proj.*`.
Shapes: query (L, N, E), key (S, N, K), value (S, N, V), batch first where the original was; core q (N, H, L, D).
"""

import inspect
import math
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

#: Which of query, key and value are one tensor: all ("self"), key and value ("cross"), none that we know ("separate").
Projection = Literal["self", "cross", "separate"]
_SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)
#: Arguments that change the result; a call that gives one which the recorded calls did not is an error.
_OPTIONAL = ("attn_mask", "key_padding_mask", "need_weights")


def read_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one call of `nn.MultiheadAttention` by name, defaults filled in."""
    bound = _SIGNATURE.bind(None, *args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def given(call: dict[str, Any]) -> frozenset[str]:
    """Which of the optional arguments a call gives."""
    return frozenset(name for name in _OPTIONAL if call[name] is not None and call[name] is not False)


def projection_of(query: Tensor, key: Tensor, value: Tensor) -> Projection:
    """How torch projects these: with one product, with two, or with three."""
    if key is not value:
        return "separate"
    return "self" if query is key else "cross"


class OpenMultiheadAttention(nn.Module):
    """Takes the calls of the `nn.MultiheadAttention` that it was made from; returns None in place of the weights.

    Args:
        dense: the original, whose parameters it takes over; those that it must split, it copies.
        core: maps q (N, H, L, D), k and v (N, H, S, D) to (N, H, L, D).
        projection: which of query, key and value are one tensor in every call.
        takes: optional arguments that the recorded calls gave. Masks are for `SoftmaxCore` alone: any other core was
            chosen knowing that it drops them.
    """

    #: torch's encoder layers read these, and where they hold would compute softmax attention from the weights.
    in_proj_bias = None
    _qkv_same_embed_dim = False
    #: Which of these there are depends on `projection`.
    in_proj: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    kv_proj: nn.Module

    def __init__(
        self, dense: nn.MultiheadAttention, core: nn.Module, *, projection: Projection, takes: frozenset[str]
    ) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = dense.embed_dim, dense.kdim, dense.vdim
        self.num_heads, self.head_dim, self.dropout = dense.num_heads, dense.head_dim, dense.dropout
        self.batch_first, self.projection, self.takes = dense.batch_first, projection, takes
        for name, layer in _projections(dense, projection).items():
            self.add_module(name, layer)
        self.out_proj = _as_linear(dense.out_proj)
        self.core = core
        self.train(dense.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Returns the attended values, in the layout of `query` with width E, and None.

        Raises:
            RuntimeError: a call of another kind than those that it was converted for.
        """
        options = {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask, "need_weights": need_weights}
        self._check_call(options, projection_of(query, key, value))
        is_batched = query.dim() == 3
        q, k, v = self._project(*(self._sequence_first(t, is_batched) for t in (query, key, value)))
        heads = tuple(self._split_heads(t) for t in (q, k, v))
        if isinstance(self.core, SoftmaxCore):
            mixed = self.core(*heads, **options, is_causal=is_causal)
        else:
            mixed = self.core(*heads)
        tokens, batch = q.shape[:2]
        out = self.out_proj(mixed.permute(2, 0, 1, 3).reshape(tokens * batch, self.embed_dim))
        out = out.view(tokens, batch, -1)
        if not is_batched:
            return out.squeeze(1), None
        return out.transpose(0, 1) if self.batch_first else out, None

    def _check_call(self, options: dict[str, Any], projection: Projection) -> None:
        strange = sorted(given(options) - self.takes)
        if not strange and projection != self.projection and self.projection != "separate":
            strange = [f"{projection} attention"]
        if strange:
            raise RuntimeError(
                f"MultiheadAttention was converted for {self.projection} attention with "
                f"({', '.join(sorted(self.takes)) or 'no mask and no weights'}), got {', '.join(strange)}. "
                "Convert again with an example input that makes this call."
            )

    def _sequence_first(self, x: Tensor, is_batched: bool) -> Tensor:
        if not is_batched:
            return x.unsqueeze(1)
        return x.transpose(0, 1) if self.batch_first else x

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.projection == "self":
            q, k, v = self._unpack(self.in_proj(query), 3)
            return q, k, v
        if self.projection == "cross":
            k, v = self._unpack(self.kv_proj(key), 2)
            return self.q_proj(query), k, v
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def _unpack(self, packed: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(T, N, parts * E) to that many (T, N, E), in the memory layout that torch gives them."""
        stacked = packed.unflatten(-1, (parts, self.embed_dim)).unsqueeze(0).transpose(0, -2).squeeze(-2)
        split: tuple[Tensor, ...] = stacked.contiguous().unbind(0)
        return split

    def _split_heads(self, x: Tensor) -> Tensor:
        """(T, N, E) to (N, H, T, D)."""
        tokens, batch, _ = x.shape
        rows = x.reshape(tokens, batch * self.num_heads, self.head_dim).transpose(0, 1)
        return rows.view(batch, self.num_heads, tokens, self.head_dim)


class SoftmaxCore(nn.Module):
    """The core of `nn.MultiheadAttention` operation by operation, masks included: it must give the original's bits.

    `perturbation` scales the output; anything but 1 must change the model, or the core is not on its path.
    """

    def __init__(self, dropout: float, *, perturbation: float = 1.0) -> None:
        super().__init__()
        self.dropout, self.perturbation = dropout, perturbation

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        is_causal: bool,
    ) -> Tensor:
        """Attends q (N, H, L, D) to k (N, H, S, D) and returns the weighted v, (N, H, L, D)."""
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None
        else:
            is_causal = False
        mask = _merged_mask(attn_mask, key_padding_mask, like=q)
        mix = self._mix_with_weights if need_weights else self._mix_fused
        out = mix(q, k, v, mask, is_causal)
        return out if self.perturbation == 1.0 else out * self.perturbation

    def _mix_with_weights(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        shape = q.shape
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        q, k = q * math.sqrt(1.0 / q.shape[-1]), k.transpose(-2, -1)
        weights = (q.bmm(k) if mask is None else mask.baddbmm(q, k)).softmax(dim=-1)
        return F.dropout(weights, self.dropout, self.training).bmm(v).view(shape)

    def _mix_fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        if mask is not None:
            mask = mask.unsqueeze(0) if len(mask) == 1 else mask.unflatten(0, q.shape[:2])
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)


def _merged_mask(attn_mask: Tensor | None, padding: Tensor | None, *, like: Tensor) -> Tensor | None:
    """One additive mask, (1, L, S), (N*H, L, S) or (N*H, 1, S), of both masks of a call."""
    batch, heads = like.shape[:2]
    mask = None if attn_mask is None else _additive(attn_mask, like)
    if mask is not None and mask.dim() == 2:
        mask = mask.unsqueeze(0)
    if padding is None:
        return mask
    rows = _additive(padding, like).view(batch, 1, 1, -1).expand(-1, heads, -1, -1).flatten(0, 1)
    return rows if mask is None else mask + rows


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.is_floating_point():
        return mask
    return like.new_zeros(mask.shape).masked_fill(mask, -math.inf)


def _projections(dense: nn.MultiheadAttention, projection: Projection) -> dict[str, nn.Module]:
    """The layers between the inputs and q, k and v."""
    width, bias = dense.embed_dim, dense.in_proj_bias
    if projection == "self":
        return {"in_proj": _linear(dense.in_proj_weight, bias)}
    shares = {"q_proj": width, "k_proj": width, "v_proj": width}
    if projection == "cross":
        shares = {"q_proj": width, "kv_proj": 2 * width}
    sizes = list(shares.values())
    weights: Any = (
        _split(dense.in_proj_weight, sizes)
        if dense._qkv_same_embed_dim
        else (dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight)
    )
    biases = [None] * len(sizes) if bias is None else _split(bias, sizes)
    return {name: _linear(*parameters) for name, *parameters in zip(shares, weights, biases, strict=True)}


def _split(parameter: nn.Parameter, sizes: list[int]) -> list[nn.Parameter]:
    parts = parameter.detach().split(sizes)
    return [nn.Parameter(part.clone(), requires_grad=parameter.requires_grad) for part in parts]


def _as_linear(layer: nn.Module) -> nn.Module:
    """torch's own subclass of `nn.Linear` only tells its quantiser to leave it alone."""
    if type(layer) is NonDynamicallyQuantizableLinear:
        return _linear(layer.weight, layer.bias)
    return layer


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """A layer that holds these very parameters, the second of which may be None."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer
