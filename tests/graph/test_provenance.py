import copy

import torch
from torch import nn

from reparam.graph.provenance import Provenance, attach, provenance_of, unwrapped
from reparam.models.known import spec_of
from reparam.models.weights import given_weights
from tests.pico import FULL, plan_for, vit


def made() -> tuple[nn.Module, Provenance]:
    model = vit()
    plan = plan_for(model, FULL)
    return model, Provenance(spec=spec_of(model), plan=plan, weights=given_weights(model))


def test_a_model_that_was_never_converted_has_no_provenance() -> None:
    assert provenance_of(vit()) is None


def test_provenance_rides_along_in_copies_and_through_wrappers_but_not_in_the_state() -> None:
    model, provenance = made()
    keys = list(model.state_dict())
    attach(model, provenance)
    assert list(model.state_dict()) == keys
    assert provenance_of(copy.deepcopy(model)) == provenance
    assert provenance_of(nn.DataParallel(model)) is provenance
    assert provenance_of(torch.compile(model)) is provenance
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model


def test_only_the_stages_that_were_applied_count_as_applied() -> None:
    model, provenance = made()
    assert provenance.applied == provenance.plan
    first = Provenance(spec=provenance.spec, plan=provenance.plan, weights=provenance.weights, stages=1)
    attach(model, first)
    assert [stage.name for stage in first.applied.stages] == ["stage-0"]
    assert len(first.plan.stages) == 2
