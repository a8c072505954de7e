"""What a survey found, as data: one `Examination` per architecture, all of them in one `Coverage`; JSON both ways."""

from typing import Literal

from pydantic import Field

from reparam.recipe.schema import Frozen, Kind

COVERAGE_FORMAT = 1
#: What a plan decided for a site: taken by an operator ("converted"), or the cause of its skip.
Fate = Literal["converted", "refused", "no gain", "idle", "keep", "inside", "no rule"]
#: "plan" needs no weights; "full" runs the converted model with random ones.
Depth = Literal["plan", "full"]
Outcome = Literal["ok", "not applicable", "failed"]


class KindTally(Frozen):
    """How many sites of one kind an architecture has, and how many met each fate."""

    kind: Kind
    found: int
    fates: dict[Fate, int]

    def of(self, *fates: Fate) -> int:
        """Sites that met one of these fates."""
        return sum(self.fates.get(fate, 0) for fate in fates)


class ReasonCount(Frozen):
    """How many sites share a fate and its reason, in which numbers are written as N; `example` is the first path."""

    kind: Kind
    fate: Fate
    reason: str
    count: int
    example: str


class Check(Frozen):
    """One thing that was tried on a converted model; `detail` is why it failed or does not apply."""

    name: str
    outcome: Outcome
    detail: str | None = None
    seconds: float = 0.0


class Versions(Frozen):
    """The packages that a record was made with."""

    reparam: str
    torch: str
    timm: str


class Examination(Frozen):
    """What became of one architecture.

    `stands_for` counts the architectures of the same family, class and set of module classes; `error` is what kept it
    from being planned or made an end of it; `doing` names what ran last where the process did not live to say more.
    """

    name: str
    family: str
    recipe: str
    depth: Depth
    versions: Versions
    model_class: str | None = None
    parameters: int | None = None
    input_size: tuple[int, int, int] | None = None
    stands_for: int = 1
    tallies: tuple[KindTally, ...] = ()
    reasons: tuple[ReasonCount, ...] = ()
    checks: tuple[Check, ...] = ()
    error: str | None = None
    doing: str | None = None
    seconds: float = 0.0
    peak_mb: float = 0.0

    def tally(self, kind: Kind) -> KindTally:
        """The tally of one kind; an empty one where there is no such site."""
        return next((t for t in self.tallies if t.kind == kind), KindTally(kind=kind, found=0, fates={}))

    @property
    def failures(self) -> tuple[str, ...]:
        """What went wrong, one sentence each: the error, then each failed check."""
        failed = [f"{c.name}: {c.detail}" for c in self.checks if c.outcome == "failed"]
        return (*([self.error] if self.error is not None else []), *failed)


class Outline(Frozen):
    """What tells architectures apart without running them: `shape` digests the set of module classes."""

    name: str
    family: str
    versions: Versions
    model_class: str | None = None
    shape: str | None = None
    parameters: int | None = None
    error: str | None = None

    @property
    def group(self) -> tuple[str, ...]:
        """Equal for architectures of which one represents the others; one that cannot be built stands alone."""
        return (self.family, self.model_class or self.name, self.shape or self.name)


class Coverage(Frozen):
    """All examinations of one run, sorted by name; `machine` says on what kind of machine, not on which."""

    format_version: int = COVERAGE_FORMAT
    recipe: str
    depth: Depth
    machine: str
    versions: Versions
    scope: str = Field(description="Which architectures, in words.")
    examinations: tuple[Examination, ...]

    @property
    def failed(self) -> tuple[Examination, ...]:
        """The examinations with at least one failure."""
        return tuple(e for e in self.examinations if e.failures)
