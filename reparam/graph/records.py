"""The plan as data: what becomes what, what stays and why; frozen, JSON both ways."""

from typing import Any, Literal

from pydantic import Field

from reparam.ops.site import Site
from reparam.recipe.schema import Frozen, Recipe

PLAN_FORMAT = 1
#: Why a layer is idle.
IDLE = "it took no part in the run on the example input"
UNREAD = "nothing reads it since an earlier stage"


class Step(Frozen):
    """One site and the operator that takes it. `rule` is where the recipe says so, such as "stage 0, rule 1"."""

    site: Site
    operator: str
    options: dict[str, Any]
    rule: str
    remark: str | None = None


class Skip(Frozen):
    """One site that stays as it is; `cause` tells a choice ("keep", "no rule") from a refusal or a parent's step.

    "no gain" is a site that conversion would not improve, "idle" one that took no part in the run; neither is an error.
    """

    site: Site
    cause: Literal["keep", "no rule", "refused", "inside", "no gain", "idle"]
    reason: str
    rule: str | None = None


class StagePlan(Frozen):
    """The steps and skips of one stage; its sites are those of the model as the stage before left it.

    `orphans` are parameters that nothing reads any more after the stage, such as tables of a dropped position bias.
    They stay in the state dict and are frozen, for distributed training waits for every gradient. `unused_rules`
    matched nothing; in a plan that was returned they are optional.
    """

    name: str
    steps: tuple[Step, ...]
    skips: tuple[Skip, ...]
    unused_rules: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()


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

    `fingerprint` identifies the module tree and parameter shapes of the dense model the plan was made for. `unseen`
    says what the run could not show, such as branches that it did not take.
    """

    format_version: int = PLAN_FORMAT
    recipe: Recipe
    fingerprint: str
    input_shape: tuple[int, ...]
    stages: tuple[StagePlan, ...]
    before: Totals
    after: Totals
    unseen: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of all stages."""
        return tuple(step for stage in self.stages for step in stage.steps)
