"""The page `docs/coverage.md`: totals, failures, reasons and families of one or more coverages, as Markdown."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from reparam.survey.fates import MATHEMATICAL, is_mathematical
from reparam.survey.records import Coverage, Examination, Versions
from reparam.survey.totals import (
    attention_totals,
    check_counts,
    converted,
    not_applicable,
    reason_counts,
)

#: What every page begins with.
TITLE = "# Coverage\n\nWritten by `reparam coverage`;"
_HEAD = f"""{TITLE} do not edit. How to make it again and how to read it: [checking.md](checking.md).
"""
_SLOWEST = 5
_ROUND_TRIP = "exact round trip"


def page(coverages: Sequence[Coverage]) -> str:
    """The whole page, one section for each coverage."""
    return "\n".join([_HEAD, *(line for coverage in coverages for line in _section(coverage))]).rstrip() + "\n"


def _section(coverage: Coverage) -> Iterator[str]:
    yield f"## `{coverage.recipe}`, {_DEPTHS[coverage.depth]}"
    yield ""
    yield f"{coverage.scope}. Made with {'; '.join(_versions(coverage))}; {coverage.machine}."
    yield ""
    yield from _totals(coverage.examinations)
    if coverage.depth == "full":
        yield from _checks(coverage.examinations)
    yield from _failures(coverage)
    yield from _reasons(coverage.examinations)
    yield from _families(coverage)
    yield from _cost(coverage.examinations)


_DEPTHS = {"plan": "planned without weights", "full": "converted, run, saved and compared with random weights"}


def _versions(coverage: Coverage) -> list[str]:
    made = {e.versions for e in coverage.examinations} or {coverage.versions}
    return sorted(map(_version, made))


def _version(versions: Versions) -> str:
    return f"reparam {versions.reparam}, torch {versions.torch}, timm {versions.timm}"


def _totals(found: Sequence[Examination]) -> Iterator[str]:
    attention = attention_totals(found)
    errors = sum(e.error is not None for e in found)
    yield from _table(
        ["", "architectures", "attention operations"],
        [
            ["examined", attention.names, ""],
            ["with softmax attention", attention.names_with, attention.found],
            ["converted", "", attention.converted],
            ["refused or without gain for a mathematical reason", "", attention.mathematical],
            ["refused or without gain for another reason", "", attention.refused],
            ["kept by the recipe", "", attention.kept],
            ["took no part in the run", "", attention.idle],
            ["**converted or mathematically refused**", _share(attention.names_covered, attention.names_with),
             _share(attention.covered, attention.found)],
            ["ended by an error", errors, ""],
        ],
    )  # fmt: skip
    rows = [[kind, *converted(found, kind)] for kind in ("linear", "conv2d", "mlp")]
    yield from _table(["other sites", "found", "converted"], rows)


def _checks(found: Sequence[Examination]) -> Iterator[str]:
    counts = check_counts(found)
    yield from _table(
        ["check", "ok", "failed", "not applicable", "not reached"],
        [
            [name, c["ok"], c["failed"], c["not applicable"], len(found) - c.total()]
            for name, c in counts.items()
        ],
    )  # fmt: skip
    standing = sum(e.stands_for for e in found if not e.failures)
    yield "Images are of the default size, or 256 x 256 where that is smaller and the architecture takes it."
    yield ""
    yield f"The architectures without a failure stand for {standing} of {sum(e.stands_for for e in found)} names."
    yield ""
    reasons = not_applicable(found)
    if reasons:
        rows = [[name, _cell(reason), count] for (name, reason), count in sorted(reasons.items())]
        yield from _table(["check", "does not apply because", "architectures"], rows)


def _failures(coverage: Coverage) -> Iterator[str]:
    yield "### Failures"
    yield ""
    if not coverage.failed:
        yield "None."
    for examination in coverage.failed:
        for failure in examination.failures:
            yield f"- `{examination.name}`: {_cell(failure)}"
    yield ""


def _reasons(found: Sequence[Examination]) -> Iterator[str]:
    reasons = reason_counts(found)
    yield "### What was not converted, and why"
    yield ""
    if not reasons:
        yield "Nothing was refused."
        yield ""
        return
    rows = [
        [
            r.kind,
            r.fate,
            _cell(r.reason),
            "yes" if is_mathematical(r.reason) else "no",
            r.count,
            names,
            f"`{r.example}`",
        ]
        for r, names in reasons
    ]
    yield from _table(["kind", "fate", "reason (N: a number)", "mathematical", "sites", "names", "for example"], rows)
    yield from _names_refused(found)


def _is_so(reason: str) -> str:
    return "yes" if is_mathematical(reason) else "no"


def _names_refused(found: Sequence[Examination]) -> Iterator[str]:
    """Names with an attention that was refused for a reason that is not mathematical, each with its reasons."""
    lines = [
        f"- `{e.name}`: {r.count} {r.fate}, {_cell(r.reason)}"
        for e in found
        for r in e.reasons
        if r.kind == "attention" and r.fate in ("refused", "no gain") and not is_mathematical(r.reason)
    ]
    if lines:
        yield "Attention refused for another than a mathematical reason, by name:"
        yield ""
        yield from lines
        yield ""
    words = "; ".join(f'"{words}" ({why})' for words, why in MATHEMATICAL.items())
    yield f"Reasons are called mathematical where they say: {words}."
    yield ""


def _families(coverage: Coverage) -> Iterator[str]:
    groups: dict[str, list[Examination]] = {}
    for examination in coverage.examinations:
        groups.setdefault(examination.family, []).append(examination)
    is_full = coverage.depth == "full"
    headings = [
        "family",
        "names",
        "attention",
        "MLPs",
        "linear",
        "conv2d",
        *(["round trips"] if is_full else []),
        "failed",
    ]
    yield "### Families"
    yield ""
    yield "Converted of found; what lies inside a converted module is not counted apart."
    yield ""
    rows = [_family(name, group, is_full=is_full) for name, group in sorted(groups.items())]
    yield from _table(headings, rows)


def _family(name: str, group: Sequence[Examination], *, is_full: bool) -> list[object]:
    cells: list[object] = [name, len(group)]
    for kind in ("attention", "mlp", "linear", "conv2d"):
        found, taken = converted(group, kind)
        cells.append(f"{taken} / {found}" if found else "")
    if is_full:
        trips = check_counts(group).get(_ROUND_TRIP, Counter())
        due = len(group) - trips["not applicable"]
        cells.append(f"{trips['ok']} / {due}" if due else "")
    return [*cells, sum(bool(e.failures) for e in group) or ""]


def _cost(found: Sequence[Examination]) -> Iterator[str]:
    if not found:
        return
    seconds = sorted(e.seconds for e in found)
    yield "### Time and memory"
    yield ""
    yield (
        f"One thread each, measured while others ran: median {seconds[len(seconds) // 2]:.1f} s, longest "
        f"{seconds[-1]:.1f} s, {sum(seconds) / 60:.1f} min in all; largest peak "
        f"{max(e.peak_mb for e in found) / 1000:.1f} GB."
    )
    yield ""
    slowest = sorted(found, key=lambda e: -e.seconds)[:_SLOWEST]
    rows = [[f"`{e.name}`", f"{e.seconds:.1f}", f"{e.peak_mb / 1000:.1f}", _slowest_check(e)] for e in slowest]
    yield from _table(["slowest", "s", "GB", "longest check"], rows)


def _slowest_check(examination: Examination) -> str:
    longest = max(examination.checks, key=lambda check: check.seconds, default=None)
    return "" if longest is None else f"{longest.name}, {longest.seconds:.1f} s"


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join('---' for _ in headings)}|"
    for row in rows:
        yield f"| {' | '.join(str(cell) for cell in row)} |"
    yield ""


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.2f} %)" if whole else str(part)


def _cell(text: str) -> str:
    """Text that neither ends a table's cell nor starts markup."""
    return text.replace("|", "\\|").replace("<", "\\<").replace("\n", " ")
