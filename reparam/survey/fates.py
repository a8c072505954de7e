"""From a plan to tallies: what became of every site, counted by kind, with the reasons grouped."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from reparam.graph.records import Plan
from reparam.recipe.schema import Kind
from reparam.survey.records import Fate, KindTally, ReasonCount

_NUMBER = re.compile(r"\d+(\.\d+)?")
#: A site keeps the most telling of the fates that the stages gave it: the first of these.
_RANK: tuple[Fate, ...] = ("converted", "refused", "no gain", "idle", "keep", "inside", "no rule")
#: Words of a reason -> why no operator of the family could ever take the place, however the model were written.
MATHEMATICAL: Mapping[str, str] = {
    "attends over channels": "the map is D x D, so it is linear in the tokens already",
    "there is one query": "one row of scores is linear in the tokens already",
    "attends across the batch": "images would see their neighbours",
    "difference of two softmaxes": "differential attention needs weights of both signs",
}
_SiteKey = tuple[Kind, str, int]


def is_mathematical(reason: str) -> bool:
    """Whether a reason states a property of the attention itself, and no limit of what reparam can read or rewrite."""
    return any(words in reason for words in MATHEMATICAL)


def folded(reason: str) -> str:
    """The reason with its numbers written as N, so that equal reasons of several sites are equal."""
    return _NUMBER.sub("N", reason)


def tally_plan(plan: Plan) -> tuple[tuple[KindTally, ...], tuple[ReasonCount, ...]]:
    """Counts the sites of a plan by kind and fate, and the reasons of those that no operator took."""
    fates = _fates(plan)
    kinds: dict[Kind, Counter[Fate]] = {}
    for (kind, _, _), (fate, _) in fates.items():
        kinds.setdefault(kind, Counter())[fate] += 1
    tallies = [KindTally(kind=kind, found=counts.total(), fates=dict(counts)) for kind, counts in kinds.items()]
    return tuple(sorted(tallies, key=lambda tally: tally.kind)), tuple(_reasons(fates.items()))


def _fates(plan: Plan) -> dict[_SiteKey, tuple[Fate, str]]:
    """What became of each site over all stages. A site that only a later stage sees counts like any other."""
    found: dict[_SiteKey, tuple[Fate, str]] = {}
    for key, fate, reason in _decisions(plan):
        if key not in found or _RANK.index(fate) < _RANK.index(found[key][0]):
            found[key] = fate, reason
    return found


def _decisions(plan: Plan) -> Iterator[tuple[_SiteKey, Fate, str]]:
    for stage in plan.stages:
        for step in stage.steps:
            yield (step.site.kind, step.site.path, step.site.number), "converted", ""
        for skip in stage.skips:
            yield (skip.site.kind, skip.site.path, skip.site.number), skip.cause, skip.reason


def _reasons(fates: Iterable[tuple[_SiteKey, tuple[Fate, str]]]) -> Iterator[ReasonCount]:
    groups: dict[tuple[Kind, Fate, str], list[str]] = {}
    for (kind, path, _), (fate, reason) in fates:
        if fate not in ("converted", "inside", "no rule"):
            groups.setdefault((kind, fate, folded(reason)), []).append(path)
    for (kind, fate, reason), paths in sorted(groups.items()):
        yield ReasonCount(kind=kind, fate=fate, reason=reason, count=len(paths), example=paths[0])
