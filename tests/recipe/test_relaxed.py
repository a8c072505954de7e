from reparam.recipe.load import load_recipe
from reparam.recipe.relaxed import relaxed


def test_a_relaxed_recipe_differs_in_nothing_but_its_optional_rules() -> None:
    strict = load_recipe("shiftaddvit")
    rules = [rule for stage in relaxed(strict).stages for rule in stage.rules]
    assert all(rule.optional for rule in rules)
    before = [rule.model_copy(update={"optional": True}) for stage in strict.stages for rule in stage.rules]
    assert rules == before
    assert not all(rule.optional for stage in strict.stages for rule in stage.rules)
