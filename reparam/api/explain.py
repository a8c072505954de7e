"""`reparam.explain`: why one module of a model becomes what it becomes, or stays, and what to write to change it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from reparam.api.recipes import check_recipe
from reparam.api.subject import is_checkpoint, resolve_subject
from reparam.checkpoint.load import load
from reparam.errors import ModelError
from reparam.graph.explain import explain_path
from reparam.graph.explanation import Explanation
from reparam.graph.finders.base import Scene
from reparam.graph.plan import make_plan
from reparam.graph.provenance import Provenance, provenance_of, unwrapped
from reparam.graph.records import Plan, Totals
from reparam.models.inputs import InputSpec, meta_inputs
from reparam.recipe.relaxed import relaxed
from reparam.recipe.schema import Recipe
from reparam.trace.probe import ExampleInput, probe

#: Planned for a model that is not converted, when no recipe is named.
DEFAULT_RECIPE = "shiftaddvit"


def explain(
    model: str | Path | nn.Module,
    path: str,
    *,
    recipe: str | Path | Recipe | None = None,
    example_input: ExampleInput | None = None,
    overrides: Sequence[str] = (),
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    base: nn.Module | Callable[[], nn.Module] | None = None,
) -> Explanation:
    """Explains one module: the rule that matched it or the first test that failed, in each stage, and the way out.

    Args:
        model: what `plan` takes, or a converted model or the folder of one, which is explained from its own plan.
        path: dotted path of a module or parameter, a glob such as "blocks.*.attn", or "re:" and an expression.
        recipe: of a model that is not converted: shipped name, path of a .toml file, or a Recipe.
        example_input: a tensor the model takes, or a tuple of arguments; wanted for modules that timm does not know.
        overrides: changes of the recipe, such as "stage.0.rule.0.conv_kernel=5".
        num_classes: classes of a named model.
        img_size: side of its square images, in pixels.
        in_chans: channels of its images.
        model_kwargs: further arguments of its builder.
        base: for a folder: the dense model, or a function that makes it, if only you can build it.
    Raises:
        ModelError: the model is unknown or cannot run, nothing in it has that path, or it has a plan already.
        RecipeError: the recipe cannot be found or has faults, all named at once.
        CheckpointError: the folder is no intact checkpoint.
    """
    source = load(model, base=base, check=False) if is_checkpoint(model) else model  # type: ignore[arg-type]
    provenance = provenance_of(source) if isinstance(source, nn.Module) else None
    if isinstance(source, nn.Module) and provenance is not None:
        given: dict[str, object] = {"recipe": recipe, "example_input": example_input, "overrides": overrides or None}
        given |= {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
        _refuse_given({**given, "model_kwargs": model_kwargs or None}, provenance.plan)
        return _explain_converted(unwrapped(source), provenance, path)
    subject = resolve_subject(
        source if isinstance(source, nn.Module) else str(source),
        example_input=example_input,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        model_kwargs=model_kwargs,
    )
    checked = check_recipe(DEFAULT_RECIPE if recipe is None else recipe, overrides=overrides)
    plan = _plan_whatever_fits(subject.model, checked, subject.example_input)
    return explain_path(Scene(subject.model, probe(subject.model, subject.example_input)), plan, path)


def _refuse_given(options: Mapping[str, object], plan: Plan) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ModelError(
            f'the model was converted by recipe "{plan.recipe.name}" and is explained by its own plan; '
            f"leave out {', '.join(given)}"
        )


def _explain_converted(model: nn.Module, provenance: Provenance, path: str) -> Explanation:
    plan = provenance.plan
    inputs = meta_inputs(provenance.inputs or (InputSpec(shape=plan.input_shape),))
    done = len(plan.stages) if provenance.stages is None else provenance.stages
    return explain_path(Scene(model, probe(model, inputs)), plan, path, stages_done=done)


def _plan_whatever_fits(model: nn.Module, recipe: Recipe, example_input: ExampleInput) -> Plan:
    """The plan of a recipe whose rules may all match nothing: that is what is to be explained, not an error."""
    plan = make_plan(
        model,
        relaxed(recipe),
        example_input,
        count=lambda *_: Totals(parameters=0, operations={}),
        allow_partial=True,
    )
    return plan.model_copy(update={"recipe": recipe})
