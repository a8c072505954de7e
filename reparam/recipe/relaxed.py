"""A recipe without demands: every rule may match nothing, as where it meets many models, or one stage of it alone."""

from reparam.recipe.schema import Recipe


def relaxed(recipe: Recipe) -> Recipe:
    """Returns the recipe with every rule optional."""
    stages = [
        stage.model_copy(update={"rules": tuple(rule.model_copy(update={"optional": True}) for rule in stage.rules)})
        for stage in recipe.stages
    ]
    return recipe.model_copy(update={"stages": tuple(stages)})
