"""torch without a compiler: as written, with channels last, and in bf16 (weights and input cast, no autocast)."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from reparam.cost.baselines.base import REFERENCE, Inapplicable, Run, baseline
from reparam.cost.workload import Workload
from reparam.ops.conv_form import ConvAttributes

#: Operators and lowered forms of convolutions are no `nn.Conv2d`.
_CONVOLUTIONS = (nn.Conv2d, ConvAttributes)


@baseline(REFERENCE, title="eager, fp32", dtype="float32", in_torch=True)
def eager(dense: Workload) -> Run:
    """The model as it is."""
    return partial(dense.model, dense.batch)


@baseline("channels-last", title="eager, fp32, channels last", dtype="float32", in_torch=True)
def channels_last(dense: Workload) -> Run:
    """Images and convolutions with the channels last in memory."""
    if not wants_channels_last(dense):
        raise Inapplicable("no convolutional network: fewer than two convolutions over images")
    model, batch = laid_out(dense)
    return partial(model, batch)


@baseline("bf16", title="eager, bf16", dtype="bfloat16", in_torch=True)
def bf16(dense: Workload) -> Run:
    """Weights and input cast to bf16; channels last where that helps."""
    model, batch = in_bf16(dense)
    return partial(model, batch)


def wants_channels_last(dense: Workload) -> bool:
    """Whether a model is a convolutional network; a patch embedding alone makes none."""
    return dense.batch.dim() == 4 and sum(isinstance(module, _CONVOLUTIONS) for module in dense.model.modules()) > 1


def laid_out(dense: Workload) -> tuple[nn.Module, Tensor]:
    """The model and its batch, with channels last if it is a convolutional network."""
    if not wants_channels_last(dense):
        return dense.model, dense.batch
    model = copy.deepcopy(dense.model)
    for module in model.modules():
        # A lowered model has other tensors of four axes and more, in its own order.
        if isinstance(module, _CONVOLUTIONS) and isinstance(module.weight, nn.Parameter):
            module.to(memory_format=torch.channels_last)
    return model, dense.batch.to(memory_format=torch.channels_last)


def in_bf16(dense: Workload) -> tuple[nn.Module, Tensor]:
    """A copy of the model in bf16, and its batch, in bf16 if it is one of floats."""
    model, batch = laid_out(dense)
    model = copy.deepcopy(model) if model is dense.model else model
    return model.to(torch.bfloat16), batch.to(torch.bfloat16) if batch.is_floating_point() else batch
