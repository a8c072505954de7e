"""Softmax attention's two products in canonical form: what an exact core computes to prove a match.

Put into the owner's graph in place of the model's own products, with everything between them kept, they must give the
model's bits; then the operands, their order and their layout are what the match says.
"""

import torch
from torch import Tensor

from reparam.graph.layout import Axes, canonical, from_heads, inverse_axes, to_heads


def exact_scores(
    q: Tensor, k: Tensor, q_axes: Axes, k_axes: Axes, order: tuple[int, ...], *, by_einsum: bool, alpha: float = 1.0,
    addend: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Returns q @ k' with its axes in `order`; q and k come in the model's layout.

    `alpha` and `addend` are those of baddbmm; `by_einsum` multiplies in einsum's own way, which can round differently.
    """
    q, k = canonical(q, q_axes), canonical(k, k_axes)
    if by_einsum:
        scores = torch.einsum("...ic,...jc->...ij", q, k)
    elif alpha != 1.0 or addend is not None:
        beta = 0 if addend is None else 1
        scores = torch.baddbmm(q.new_empty(1) if addend is None else addend, q, k.mT, beta=beta, alpha=alpha)
    else:
        scores = q @ k.transpose(-2, -1)
    return scores.permute(order)


def exact_values(
    weights: Tensor, v: Tensor, weight_axes: Axes, v_axes: Axes, order: tuple[int, ...], *, by_einsum: bool
) -> Tensor:
    """Returns weights @ v with its axes in `order`; weights and v come in the model's layout."""
    weights, v = canonical(weights, weight_axes), canonical(v, v_axes)
    out = torch.einsum("...ij,...jc->...ic", weights, v) if by_einsum else weights @ v
    return out.permute(order).contiguous()


def there_and_back(x: Tensor, axes: Axes, axis: int | None, merged: int) -> Tensor:
    """Returns x after a trip to heads and back, which must change nothing."""
    return from_heads(to_heads(x, axes, axis, merged), x, axes, inverse_axes(axes), axis, merged)


def perturbed(out: Tensor) -> Tensor:
    """Returns another tensor than `out`: a model that does not change with it does not use the core.

    Each place along the last axis changes by its own factor, for a norm behind the core would undo a common one.
    """
    return out * torch.linspace(0.5, 1.5, out.shape[-1], dtype=out.dtype, device=out.device)
