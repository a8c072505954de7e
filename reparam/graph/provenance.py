"""What a converted model remembers of its making: stored on the module itself, so that it can be saved and rebuilt."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from reparam.graph.records import Plan
from reparam.models.inputs import InputSpec
from reparam.models.spec import ModelSpec
from reparam.models.weights import WeightsRecord

_ATTRIBUTE = "_reparam_provenance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The dense model, the plan it was converted by, and the dense weights it began with.

    `stages` is how many of the plan's stages the model has been through; None means all of them. `inputs` is what its
    forward takes; None means one float32 tensor of the plan's input shape.
    """

    spec: ModelSpec
    plan: Plan
    weights: WeightsRecord
    stages: int | None = None
    inputs: tuple[InputSpec, ...] | None = None

    @property
    def applied(self) -> Plan:
        """The plan cut down to the stages that the model has been through."""
        if self.stages is None:
            return self.plan
        return self.plan.model_copy(update={"stages": self.plan.stages[: self.stages]})


def attach(model: nn.Module, provenance: Provenance) -> None:
    """Stores `provenance` on the model; copies carry it along, the state dict does not."""
    vars(unwrapped(model))[_ATTRIBUTE] = provenance


def detach(model: nn.Module) -> None:
    """Makes the model forget its making, for one that can no longer be rebuilt from it."""
    vars(unwrapped(model)).pop(_ATTRIBUTE, None)


def provenance_of(model: nn.Module) -> Provenance | None:
    """What `attach` stored on the model, or on the model inside a DDP or torch.compile wrapper."""
    found = vars(unwrapped(model)).get(_ATTRIBUTE)
    return found if isinstance(found, Provenance) else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside any wrappers of torch.compile, DataParallel or DistributedDataParallel."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            inner = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            inner = model._orig_mod
        else:
            return model
        model = inner
