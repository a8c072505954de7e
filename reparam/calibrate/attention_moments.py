"""A binary linear attention's scales and convolution by least squares, from second moments of its output's parts.

Once the thresholds are given, the output of head h and channel e is linear in all that is left:

    out = a[h] (z - m) + g[h] m + sum_t w[t] u_t,      b = g - a

z is the mixture by similarity, m the mean value, u_t the values that tap t of the convolution reads. So the moments of
(z, m, u, y), y being the softmax attention's output, hold everything that the fit and its error need. Scales are shared
by the channels of a head and taps by all that one filter serves: the taps are eliminated first, filter by filter.

Shapes: H heads, K heads of keys and values, E channels, T taps; moments (H, E, T + 3, T + 3).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.token_conv import SequenceConv

#: Share of each diagonal entry that is added to it; pulls towards the attention as it starts.
_DAMPING = 1e-5


class LinearFit(NamedTuple):
    """Scales a and b (H, 1, 1), the convolution's weight, and the summed squared error (H,) of the output."""

    output_scale: Tensor
    mean_scale: Tensor
    taps: Tensor | None
    error: Tensor


class AttentionMoments:
    """Running sums for one attention: what its output is made of, and the softmax attention's output.

    Its thresholds are those that the attention has when a batch is added.
    """

    def __init__(self, core: BinaryLinearAttention) -> None:
        self._core, self._conv, form = core, core.token_conv, core.form
        self.sums = torch.zeros(form.heads, form.value_dim, *[_taps(self._conv) + 3] * 2, dtype=torch.float64)

    def add(self, q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> None:
        """Adds a batch: what the attention is given, and the dense output y (B, H, N, E)."""
        core = self._core
        mean = core.for_all_heads(v.mean(dim=-2, keepdim=True))
        neighbours = [core.for_all_heads(u) for u in _neighbours(self._conv, v)]
        parts = torch.stack([part.expand_as(y) for part in (core.mix(q, k, v), mean, *neighbours, y)], dim=-1)
        rows = parts.float().permute(1, 3, 0, 2, 4).flatten(2, 3)
        self.sums += (rows.mT @ rows).double().cpu()

    def start_error(self) -> Tensor:
        """The summed squared error (H,) of an attention that neither scales nor convolves."""
        return self._error(_start(self.sums.shape[-1]).expand(self.sums.shape[:3]))

    def fit(self) -> LinearFit:
        """The best scales, as far as the attention has them, and the best convolution, if it has one."""
        core, parts = self._core, self.sums.shape[-1]
        heads, share, start, basis = (
            core.key_heads,
            core.form.heads // core.key_heads,
            _start(parts),
            _basis(core, parts),
        )
        moments = self.sums.unflatten(0, (heads, share)).transpose(1, 2)  # (K, E, share, ...)
        if isinstance(self._conv, SequenceConv):
            moments = moments.sum(1, keepdim=True)  # one filter serves all channels
        taps, of_head = moments[..., 2:-1, :], moments.sum(1)
        scales, filters = _solve_arrow(
            _damped(taps[..., 2:-1].sum(2)),
            (taps @ basis).movedim(2, -2).flatten(-2),
            _block_diagonal(_damped(basis.T @ of_head @ basis)),
            -(taps @ start).sum(2),
            -(basis.T @ of_head @ start).flatten(1),
        )
        weights = start + scales.unflatten(1, (share, -1)).flatten(0, 1) @ basis.T
        gap = weights.unsqueeze(1).repeat(1, self.sums.shape[1], 1)
        gap[..., 2:-1] = filters.repeat_interleave(share, 0)
        return LinearFit(
            output_scale=weights[:, :1].unsqueeze(2),
            mean_scale=weights[:, 1:2].unsqueeze(2),
            taps=None if self._conv is None else filters.reshape(_weight(self._conv).shape),
            error=self._error(gap),
        )

    def _error(self, gap: Tensor) -> Tensor:
        """Summed squares (H,) of what parts weighted so (H, E, T + 3) make together."""
        return ((self.sums @ gap.unsqueeze(-1)).squeeze(-1) * gap).sum((1, 2)).clamp_min(0.0)


def _start(parts: int) -> Tensor:
    """What the output of an attention without scales lacks: z - y."""
    gap = torch.zeros(parts, dtype=torch.float64)
    gap[0], gap[-1] = 1.0, -1.0
    return gap


def _basis(core: BinaryLinearAttention, parts: int) -> Tensor:
    """What a head's scales can add (T + 3, n): a deviation from the mean and the mean, the mixture, or nothing."""
    mixture, mean = torch.eye(parts, 2, dtype=torch.float64).unbind(1)
    if core.mean_scale is not None:
        return torch.stack([mixture - mean, mean], dim=1)
    return mixture.unsqueeze(1) if core.output_scale is not None else mixture.new_empty(parts, 0)


def _solve_arrow(
    gram: Tensor, cross: Tensor, corner: Tensor, left: Tensor, corner_left: Tensor
) -> tuple[Tensor, Tensor]:
    """Solves for scales (K, S) and filters (K, F, T) together, the filters eliminated first.

    Args:
        gram: (K, F, T, T) of each filter's taps.
        cross: (K, F, T, S) of taps and scales.
        corner: (K, S, S) of the scales.
        left: (K, F, T) and corner_left (K, S): the right-hand sides.
    """
    solved = torch.linalg.solve(gram, torch.cat([cross, left.unsqueeze(-1)], dim=-1))
    by_scales, alone = solved[..., :-1], solved[..., -1:]
    schur = corner - (cross.mT @ by_scales).sum(1)
    scales = torch.linalg.solve(schur, corner_left.unsqueeze(-1) - (cross.mT @ alone).sum(1))
    return scales.squeeze(-1), (alone - by_scales @ scales.unsqueeze(1)).squeeze(-1)


def _block_diagonal(blocks: Tensor) -> Tensor:
    """(K, S, n, n) as (K, S * n, S * n)."""
    return torch.diag_embed(blocks.permute(0, 2, 3, 1)).permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)


def _damped(gram: Tensor) -> Tensor:
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    return gram + torch.diag_embed(_DAMPING * diagonal + (diagonal <= 0))


def _weight(conv: nn.Module) -> Tensor:
    return conv.get_parameter("conv.weight")


def _neighbours(conv: nn.Module | None, v: Tensor) -> list[Tensor]:
    """What each tap alone makes of the values: (B, K, N, E), tap by tap."""
    if conv is None:
        return []
    zero = torch.zeros_like(_weight(conv))
    found = []
    for tap in range(zero[0].numel()):
        alone = zero.flatten(1).index_fill(1, torch.tensor(tap, device=zero.device), 1.0).view_as(zero)
        found.append(functional_call(conv, {"conv.weight": alone}, (v,)))
    return found


def _taps(conv: nn.Module | None) -> int:
    return 0 if conv is None else _weight(conv)[0].numel()
