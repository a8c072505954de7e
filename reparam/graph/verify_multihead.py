"""Proves that an unfolded `nn.MultiheadAttention` computes what the original does, before an operator is its core."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reparam.copying import copy_with
from reparam.errors import RewriteError
from reparam.graph.fast_path import slow_path
from reparam.graph.multihead import open_multihead
from reparam.graph.verify import Call, random_call, random_weights, seeded
from reparam.ops.open_multihead import SoftmaxCore
from reparam.trace.record import ModuleCall

_PERTURBATION = 1.5


def check_exact_multihead(module: nn.MultiheadAttention, calls: Sequence[ModuleCall], *, path: str) -> None:
    """Proves the unfolding with softmax attention as the core, in both modes, on a copy with random weights.

    Raises:
        RewriteError: the exact core changed the output, or a perturbed one did not.
    """
    with seeded():
        stand_in = copy_with(module, parameter=random_weights)
    made = [random_call(call.args, call.kwargs, like=stand_in) for call in calls]
    core = SoftmaxCore(module.dropout)
    opened = open_multihead(stand_in, calls, core)
    with slow_path():
        for training in (False, True):
            if not _same(stand_in, opened, made, training=training):
                mode = "training" if training else "evaluation"
                raise RewriteError(f'"{path}": unfolded, its output in {mode} mode is not the original\'s')
        core.perturbation = _PERTURBATION
        if _same(stand_in, opened, made, training=False):
            raise RewriteError(f'"{path}": its output does not depend on the core that was put in')


def _same(first: nn.Module, second: nn.Module, calls: Sequence[Call], *, training: bool) -> bool:
    """Whether two modules give the same bits under one seed."""
    pairs = zip(_run(first, calls, training=training), _run(second, calls, training=training), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@torch.no_grad()
def _run(module: nn.Module, calls: Sequence[Call], *, training: bool) -> list[Tensor]:
    module.train(training)
    with seeded():
        return [module(*args, **kwargs)[0] for args, kwargs in calls]
