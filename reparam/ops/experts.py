"""Two experts and the ways to run them: what whole-MLP mixtures and routed layers share."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.ops.channel_layer import count_dense, widths
from reparam.ops.dispatch import dispatch_gather, dispatch_grouped, dispatch_masked
from reparam.ops.moe_options import MoeMlpOptions
from reparam.ops.precision import compute_dtype
from reparam.ops.routing import Router
from reparam.ops.shift import ShiftLinear

#: Grouped products want rows that start on 16 bytes; 8 elements are enough for every floating type.
GROUPED_ALIGNMENT = 8
Expert = Callable[[Tensor], Tensor]
Chains = tuple[Sequence[nn.Module], Sequence[nn.Module]]


def widths_are_aligned(layers: Iterable[nn.Module]) -> bool:
    """Whether rows of all widths start where grouped products want them."""
    return all(width % GROUPED_ALIGNMENT == 0 for layer in layers for width in widths(layer))


def way_of(tokens: Tensor, options: MoeMlpOptions, *, can_group: bool) -> str:
    """Which dispatch serves these tokens: the wished one, or the one that makes no host wait for a device."""
    if options.dispatch != "auto":
        return options.dispatch
    if torch.compiler.is_compiling() or tokens.device.type == "meta":
        return "masked"
    if tokens.device.type == "cpu":
        return "gather"
    # Other types fall back to a loop that reads the offsets on the host, which is what grouping is to avoid.
    return "grouped" if can_group and compute_dtype(tokens) == torch.bfloat16 else "masked"


def run_experts(tokens: Tensor, index: Tensor, experts: tuple[Expert, Expert], *, way: str, chains: Chains) -> Tensor:
    """Returns E_i(token) for each token.

    Args:
        tokens: (T, C).
        index: (T,), 0 for the multiply expert and 1 for the shift expert.
        experts: each maps (T, C) to (T, O).
        way: "gather", "grouped" or "masked".
        chains: the experts' modules in call order; only grouped dispatch reads them.
    """
    if way == "gather":
        return dispatch_gather(tokens, index, experts)
    if way == "grouped":
        return dispatch_grouped(tokens, index, chains)
    return dispatch_masked(tokens, index, experts)


def count_experts(
    layers: Iterable[tuple[nn.Module, ShiftLinear]], tokens: int, *, router: Router, share: float
) -> OpCount:
    """Counts a router's two products and one comparison, and each pair of layers at the multiply expert's share.

    Inside, the tokens of each expert are gathered before its first layer and scattered behind its last.
    """
    multiplied = round(tokens * share)
    biases = 0 if router.bias is None else 2 * tokens
    count = OpCount.multiply_accumulate(tokens * router.weight.numel())
    count += OpCount({("add", "f32"): biases, ("cmp", "f32"): tokens})
    inside = 0
    for multiply, shift in layers:
        count += count_dense(multiply, multiplied) + shift.op_count((tokens - multiplied, shift.in_features))
        inside += tokens * (shift.in_features + shift.out_features)
    return count + OpCount.moves(read=inside, write=inside)


def tokens_in(shape: tuple[int, ...], width: int) -> int:
    """How many tokens of `width` channels a map holds."""
    return math.prod(shape) // width
