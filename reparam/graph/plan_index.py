"""A plan asked by path: what each stage says of a module, what is converted around it, and which sites lie inside."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from reparam.graph.inline import is_inline, layers_of
from reparam.graph.records import Plan, Skip, StagePlan, Step
from reparam.ops.site import Site
from reparam.recipe.schema import Kind


@dataclass(frozen=True)
class PlanIndex:
    """Looks up the records of a plan by module path, at a cost that does not grow with the plan."""

    plan: Plan

    @cached_property
    def _records(self) -> list[dict[str, list[Step | Skip]]]:
        by_path: list[dict[str, list[Step | Skip]]] = []
        for stage in self.plan.stages:
            records: dict[str, list[Step | Skip]] = {}
            for record in records_of(stage):
                records.setdefault(record.site.path, []).append(record)
            by_path.append(records)
        return by_path

    def at(self, stage: int, path: str) -> list[Step | Skip]:
        """What a stage says of the sites at a path."""
        return self._records[stage].get(path, [])

    def around(self, stage: int, path: str) -> list[Step]:
        """The steps up to a stage that took the module itself, or swapped a module around it; outermost first."""
        return [
            record
            for owner in (*_owners(path), path)
            for number in range(stage + 1)
            for record in self.at(number, owner)
            if isinstance(record, Step) and (owner == path or _takes(record.site, path))
        ]

    def sites(self, path: str) -> tuple[Site, ...]:
        """The sites at a path, each as the first stage that lists it sees it."""
        found: dict[tuple[Kind, int], Site] = {}
        for stage in range(len(self.plan.stages)):
            for record in self.at(stage, path):
                found.setdefault((record.site.kind, record.site.number), record.site)
        return tuple(found.values())

    def within(self, path: str) -> Site | None:
        """The innermost attention or MLP around a path, in the dense model."""
        if not self.plan.stages:
            return None
        owners = [record.site for owner in _owners(path) for record in self.at(0, owner)]
        return next(
            (site for site in reversed(owners) if site.kind in ("attention", "mlp") and _holds(site, path)), None
        )

    def parts(self, path: str) -> dict[Kind, tuple[str, ...]]:
        """The sites inside a module of the dense model: their paths by kind."""
        found: dict[Kind, dict[str, None]] = {}
        for inner, records in self._records[0].items() if self._records else ():
            for record in records if path in _owners(inner) else ():
                found.setdefault(record.site.kind, {})[inner] = None
        return {kind: tuple(paths) for kind, paths in found.items()}


def records_of(stage: StagePlan) -> tuple[Step | Skip, ...]:
    """All that a stage says, steps first."""
    return (*stage.steps, *stage.skips)


def _holds(site: Site, part: str) -> bool:
    """Whether a module inside the site's own belongs to the site: of an inline MLP its layers only."""
    return not is_inline(site) or part in layers_of(site)


def _takes(site: Site, part: str) -> bool:
    """Whether a module inside the site's own is converted with it: attention leaves its owner where it is."""
    return site.kind != "attention" and _holds(site, part)


def _owners(path: str) -> tuple[str, ...]:
    """The paths of the modules around one, the whole model first."""
    return tuple(_iter_owners(path))


def _iter_owners(path: str) -> Iterator[str]:
    if path:
        yield ""
        names = path.split(".")
        yield from (".".join(names[:end]) for end in range(1, len(names)))
