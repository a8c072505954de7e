"""The plan as data: what becomes what, what stays and why; frozen, JSON both ways."""

from typing import Any, Literal

from pydantic import Field

from reparam.ops.site import Site
from reparam.recipe.schema import Frozen, Recipe

PLAN_FORMAT = 1


class Step(Frozen):
    """One site and the operator that takes it. `rule` is where the recipe says so, such as "stage 0, rule 1"."""

    site: Site
    operator: str
    options: dict[str, Any]
    rule: str
    remark: str | None = None


class Skip(Frozen):
    """One site that stays as it is; `cause` tells a choice ("keep", "no rule") from a refusal or a parent's step."""

    site: Site
    cause: Literal["keep", "no rule", "refused", "inside"]
    reason: str
    rule: str | None = None


class StagePlan(Frozen):
    """The steps and skips of one stage; its sites are those of the model as the stage before left it."""

    name: str
    steps: tuple[Step, ...]
    skips: tuple[Skip, ...]
    unused_rules: tuple[str, ...] = ()


class Totals(Frozen):
    """Parameters and operations of one forward on `input_shape`; `operations` maps "mul.f32" and the like to counts."""

    parameters: int
    operations: dict[str, int]
    uncounted: dict[str, int] = Field({})

    @property
    def multiplications(self) -> int:
        """Multiplications of any type."""
        return sum(n for key, n in self.operations.items() if key.startswith("mul."))


class Plan(Frozen):
    """What `convert` will do to one model: stages in order, with totals before and after.

    `fingerprint` identifies the module tree and parameter shapes of the dense model the plan was made for.
    """

    format_version: int = PLAN_FORMAT
    recipe: Recipe
    fingerprint: str
    input_shape: tuple[int, ...]
    stages: tuple[StagePlan, ...]
    before: Totals
    after: Totals

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of all stages."""
        return tuple(step for stage in self.stages for step in stage.steps)
