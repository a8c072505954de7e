"""A sensitivity analysis as data: its subject, the dense model, and one record for each choice; JSON both ways."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, ValidationError

from reparam.errors import CheckpointError
from reparam.recipe.schema import Frozen, Kind, Recipe

SENSITIVITY_FORMAT = 1


class Subject(Frozen):
    """What the figures are about: analyses of one subject can be joined, whatever path `model` was named by.

    `weights` is a digest of the dense model's state, `data` the data settings that were given, `images` the most that
    are used.
    """

    model: str
    weights: str
    recipes: tuple[Recipe, ...]
    data: dict[str, Any]
    images: int

    def as_read(self) -> "Subject":
        """The subject as a file gives it back, in which tuples have become lists."""
        return Subject.model_validate_json(self.model_dump_json())


class DenseFigures(Frozen):
    """The dense model: accuracy in percent on `images`, operations per image.

    `weight_bytes` is the size of the weights as a device would hold them: shift weights in their bits, others in 32.
    """

    images: Annotated[int, Field(ge=1)]
    top1: FiniteFloat
    top1_interval: tuple[float, float]
    operations: Annotated[dict[str, int], Field(min_length=1)]
    uncounted: dict[str, int] = Field({})
    parameters: int
    weight_bytes: Annotated[FiniteFloat, Field(gt=0)]


class SiteSensitivity(Frozen):
    """What converting one site alone does, before any training.

    `top1` in percent; `top1_drop` in points below the dense model, negative where the converted one is better; `kl` is
    the mean over images of KL(dense || converted) in nats. What the conversion adds to the dense model's operations per
    image, parameters and bytes of weights are the `..._change`s, with experts at their balanced load. `routing` says
    how tokens were sent where the choice is a mixture of experts. `takes_along` are sites of other choices that vanish
    with this one. `began_at` is the module whose input was kept from the dense model, None where the whole network ran.
    """

    path: str
    kind: Kind
    operator: str
    options: dict[str, Any]
    recipe: str
    stage: str
    top1: FiniteFloat
    top1_drop: FiniteFloat
    kl: FiniteFloat
    routing: str | None = None
    remark: str | None = None
    takes_along: tuple[str, ...] = ()
    operations_change: dict[str, int]
    uncounted_change: dict[str, int] = Field({})
    parameters_change: int
    weight_bytes_change: FiniteFloat
    began_at: str | None = None
    seconds: float


class OtherSite(Frozen):
    """A site that is no choice by itself, and why; `cause` as in a plan, or "later": only an earlier stage makes it."""

    path: str
    kind: Kind
    cause: str
    reason: str


class Sensitivity(Frozen):
    """All choices, the most harmful first. Accuracy and divergence are measured here, counts are counted; `commands`
    makes it again.
    """

    format_version: int = SENSITIVITY_FORMAT
    subject: Subject
    dense_top1: float
    images: int
    dense: DenseFigures
    sites: Annotated[tuple[SiteSensitivity, ...], Field(min_length=1)]
    other_sites: tuple[OtherSite, ...]
    device: str
    commands: tuple[str, ...]

    def told_apart_by(self, site: SiteSensitivity) -> dict[str, Any]:
        """The options in which a choice differs from others of the same operator at the same site."""
        place = (site.path, site.kind, site.operator)
        others = [other.options for other in self.sites if (other.path, other.kind, other.operator) == place]
        return {key: value for key, value in site.options.items() if any(o.get(key) != value for o in others)}


class SensitivityStep(Frozen):
    """Where an analysis stands: `what` is going on, or the choice that was measured last; `total` counts choices."""

    what: str
    done: int = 0
    total: int = 0
    site: SiteSensitivity | None = None


class Entry(Frozen):
    """One line of the journal: what it is about, the dense figures, or one finished choice."""

    name: str
    subject: Subject | None = None
    dense: DenseFigures | None = None
    site: SiteSensitivity | None = None


def read_sensitivity(path: Path) -> Sensitivity:
    """Reads a result of `reparam sensitivity`.

    Raises:
        CheckpointError: there is none, or another file has its name.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; make it with: reparam sensitivity RUN --data-dir DIR")
    try:
        return Sensitivity.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: this is no result of `reparam sensitivity` of this version ({error.error_count()} faults). "
            "Make it again, or name another file."
        ) from None
