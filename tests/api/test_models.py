import pytest

import reparam
from reparam.errors import ModelError, RecipeError


def test_each_architecture_is_planned_as_plan_does_it_and_reported_in_order() -> None:
    steps: list[tuple[int, int, str | None]] = []
    found = reparam.list_models(
        "test_vit[2]", recipe="deepshift-q", progress=lambda step: steps.append((step.done, step.total, step.name))
    )
    assert steps == [(0, 1, None), (1, 1, "test_vit2")]
    (examination,) = found
    plan = reparam.plan("test_vit2", "deepshift-q", allow_partial=True)
    assert (examination.name, examination.family, examination.failures) == ("test_vit2", "vision_transformer", ())
    assert examination.parameters == plan.before.parameters
    assert examination.tally("linear").of("converted") == len([s for s in plan.steps if s.site.kind == "linear"]) > 0


def test_a_rule_that_picks_nothing_in_a_model_is_passed_over() -> None:
    (examination,) = reparam.list_models("test_resnet", recipe="shiftaddvit")
    assert examination.failures == ()
    assert examination.tally("attention").found == 0


def test_what_cannot_be_asked_is_refused_before_anything_runs() -> None:
    with pytest.raises(ModelError, match=r'no model of timm .* matches "nosuch\*"'):
        reparam.list_models("nosuch*")
    with pytest.raises(RecipeError, match="shiftadvit"):
        reparam.list_models("resnet18", recipe="shiftadvit")


def test_families_need_no_process() -> None:
    assert reparam.model_families(["resnet18", "test_vit?"]) == {
        "vision_transformer": ["test_vit2", "test_vit3", "test_vit4"],
        "resnet": ["resnet18"],
    }
