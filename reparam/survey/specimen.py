"""One architecture with random weights, ready for the checks: its inputs, its plan, and what the dense model gives."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.errors import ModelError
from reparam.graph.plan import make_plan
from reparam.graph.provenance import Provenance, attach
from reparam.graph.records import Plan, Totals
from reparam.graph.rewrite import rewrite
from reparam.graph.verify import seeded
from reparam.models.build import build_model, build_spec
from reparam.models.inputs import InputSpec, input_specs, seeded_inputs
from reparam.models.spec import ModelSpec
from reparam.models.weights import given_weights
from reparam.ops.fixed_point import calibrate_fixed_point_
from reparam.recipe.schema import Recipe
from reparam.trace.record import Trace

BATCH, OTHER_BATCH = 2, 3
_LIVELY = 0.05
_SIDES = (256, 224)
Outputs = list[Tensor]


@dataclass(slots=True, kw_only=True)
class Specimen:
    """What the checks share. `dense` is the model until `convert_` turns the same object into `converted`.

    `outline` is the dense model on the meta device, as it was before anything was done to it; `answers` are the dense
    model's, `trained` is what the converted one gave in training mode.
    """

    spec: ModelSpec
    plan: Plan
    dense: nn.Module
    outline: nn.Module
    folder: Path
    converted: nn.Module | None = None
    answers: dict[tuple[int, bool], Outputs] = field(default_factory=dict)
    trained: Outputs | None = None

    def images(self, batch: int) -> Tensor:
        """(batch, C, H, W), the same on every call."""
        assert self.spec.input_size is not None
        made = seeded_inputs([InputSpec(shape=(batch, *self.spec.input_size))], seed=batch)[0]
        assert isinstance(made, Tensor)
        return made

    def dense_answer(self, batch: int, *, training: bool = False) -> Outputs:
        """What the dense model gives; asked for before `convert_` or remembered from then."""
        if (batch, training) not in self.answers:
            assert self.converted is None, "the dense model is gone"
            self.answers[batch, training] = answer(self.dense, self.images(batch), training=training)
        return self.answers[batch, training]

    def convert_(self) -> nn.Module:
        """Carries out the plan on the dense model, as `reparam.convert` does."""
        example = self.images(BATCH)
        weights = given_weights(self.dense)
        model = rewrite(self.dense, self.plan, example)
        calibrate_fixed_point_(model, (example,))
        attach(model, Provenance(spec=self.spec, plan=self.plan, weights=weights, inputs=input_specs(example)))
        self.converted = model
        return model


def moderate_spec(name: str) -> ModelSpec:
    """The spec of an architecture, with images of at most 256 x 256 where it takes them.

    Images of 1024 x 1024 would be 16 times the work, and every check but those of shapes the same.
    """
    spec = build_spec(name)
    if spec.input_size is None or max(spec.input_size[1:]) <= max(_SIDES):
        return spec
    for side in _SIDES:
        with suppress(ModelError):  # it does not take this size
            return build_spec(name, img_size=side)
    return spec


def example_of(spec: ModelSpec) -> Tensor:
    """(2, C, H, W) without data."""
    assert spec.input_size is not None
    return torch.empty(BATCH, *spec.input_size, device="meta")


def plan_of(model: nn.Module, recipe: Recipe, example: Tensor) -> Plan:
    """The plan with refused sites kept; only parameters are counted."""
    return make_plan(model, recipe, example, count=_count, allow_partial=True)


def build_lively(spec: ModelSpec) -> nn.Module:
    """The model with seeded random weights, none of them constant.

    Biases, scales and tables that begin at one value (zero-initialised branches, LayerScale at 1e-5, heads of zeros)
    would hide from the output whatever stands before them; they get noise.
    """
    torch.manual_seed(0)
    model = build_model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() and bool(parameter.min() == parameter.max()):
                parameter.add_(torch.randn_like(parameter), alpha=_LIVELY)
    return model


@torch.no_grad()
def answer(model: nn.Module, images: Tensor, *, training: bool = False) -> Outputs:
    """All tensors that the model returns, under one seed; its buffers and its mode stay as they are."""
    with in_mode(model, training=training), seeded():
        return tensors(model(images))


def tensors(tree: Any) -> Outputs:
    """The tensors in a nested structure."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation inside; afterwards evaluation, and the statistics that a training run moved are back."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()} if training else {}
    model.train(training)
    try:
        yield
    finally:
        model.eval()
        for name, buffer in model.named_buffers():
            if name in kept:
                buffer.copy_(kept[name])


def _count(model: nn.Module, trace: Trace) -> Totals:
    return Totals(parameters=sum(parameter.numel() for parameter in model.parameters()), operations={})
