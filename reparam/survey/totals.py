"""Sums over examinations: of all names, and of each family."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reparam.recipe.schema import Kind
from reparam.survey.fates import is_mathematical
from reparam.survey.records import Check, Examination, ReasonCount


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTotals:
    """Attention operations by fate. `mathematical` are refused or without gain for what the attention is."""

    names: int
    names_with: int
    names_covered: int
    found: int
    converted: int
    mathematical: int
    refused: int
    kept: int
    idle: int

    @property
    def covered(self) -> int:
        """Converted, or not to be converted for a mathematical reason."""
        return self.converted + self.mathematical


def attention_totals(examinations: Sequence[Examination]) -> AttentionTotals:
    """Sums the attention of all examinations; one that could not be planned counts as a name without."""
    tallies = [e.tally("attention") for e in examinations]
    mathematical = [_mathematical(e) for e in examinations]
    covered = [t.of("converted") + m for t, m in zip(tallies, mathematical, strict=True)]
    refused = sum(t.of("refused", "no gain") for t in tallies) - sum(mathematical)
    return AttentionTotals(
        names=len(examinations),
        names_with=sum(t.found > 0 for t in tallies),
        names_covered=sum(0 < t.found == c for t, c in zip(tallies, covered, strict=True)),
        found=sum(t.found for t in tallies),
        converted=sum(t.of("converted") for t in tallies),
        mathematical=sum(mathematical),
        refused=refused,
        kept=sum(t.of("keep", "no rule", "inside") for t in tallies),
        idle=sum(t.of("idle") for t in tallies),
    )


def converted(examinations: Iterable[Examination], kind: Kind) -> tuple[int, int]:
    """Sites of a kind found and converted. Those inside a module that is converted as a whole are not counted."""
    tallies = [e.tally(kind) for e in examinations]
    return sum(t.found - t.of("inside") for t in tallies), sum(t.of("converted") for t in tallies)


def reason_counts(examinations: Iterable[Examination]) -> list[tuple[ReasonCount, int]]:
    """Each reason that kept a site back (refused, no gain, idle), summed, with how many names it touches."""
    sites: Counter[tuple[str, ...]] = Counter()
    names: Counter[tuple[str, ...]] = Counter()
    first: dict[tuple[str, ...], ReasonCount] = {}
    for examination in examinations:
        for reason in examination.reasons:
            if reason.fate == "keep":
                continue
            key = (reason.kind, reason.fate, reason.reason)
            sites[key] += reason.count
            names[key] += 1
            example = f"{examination.name}: {reason.example or '(the model)'}"
            first.setdefault(key, reason.model_copy(update={"example": example}))
    ordered = sorted(sites, key=lambda key: (key[0], -sites[key], key))
    return [(first[key].model_copy(update={"count": sites[key]}), names[key]) for key in ordered]


def check_counts(examinations: Sequence[Examination]) -> dict[str, Counter[str]]:
    """For each check how many architectures passed it, failed it, or gave it no occasion, in order."""
    counts: dict[str, Counter[str]] = {}
    for check in (check for e in examinations for check in e.checks):
        counts.setdefault(check.name, Counter())[check.outcome] += 1
    return counts


def not_applicable(examinations: Iterable[Examination]) -> Counter[tuple[str, str]]:
    """(check, reason) -> how many architectures gave the check no occasion."""
    checks: Iterable[Check] = (check for e in examinations for check in e.checks)
    return Counter((c.name, c.detail or "") for c in checks if c.outcome == "not applicable")


def _mathematical(examination: Examination) -> int:
    return sum(
        reason.count
        for reason in examination.reasons
        if reason.kind == "attention" and reason.fate in ("refused", "no gain") and is_mathematical(reason.reason)
    )
