"""An explanation as text: what the module is, its fate in each stage, what was found, and what to write.

Lines are never broken here, so that a rule can be copied as it stands.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from reparam_cli.render.fold import fold_paths
from reparam_cli.render.options import non_default
from reparam_cli.words import counted, written

if TYPE_CHECKING:
    from reparam import Explanation

_COLOURS = {"becomes": "green", "became": "green", "refused": "yellow"}
#: At most this many lines of folded paths are listed.
_SHOWN = 4


def show_explanation(explanation: "Explanation") -> None:
    """Prints the whole answer for one module on stdout."""
    Console(highlight=False).print(Text("\n").join(explanation_lines(explanation)), soft_wrap=True)


def explanation_lines(explanation: "Explanation") -> Iterator[Text]:
    """Yields the lines of the answer."""
    path = explanation.path or "(the model)"
    yield Text.assemble((path, "bold"), f"  {explanation.type}, recipe {explanation.recipe}")
    yield from _indented(_surroundings(explanation))
    if explanation.no_site:
        yield Text("no site of any kind:")
        yield from _indented(f"{kind}: {reason}" for kind, reason in explanation.no_site.items())
    for verdicts in _alike(explanation.verdicts):
        yield from _verdict_lines(verdicts[0], _which([verdict.number for verdict in verdicts]))
    if explanation.facts:
        yield Text("found:")
        yield from _indented(explanation.facts)
    if explanation.parts:
        yield Text("sites inside it:")
        yield from _indented(f"{kind}: {_folded(paths)}" for kind, paths in explanation.parts.items())


def _surroundings(explanation: "Explanation") -> Iterator[str]:
    if explanation.alike:
        yield f"{counted(len(explanation.alike), 'other module')} alike: {_folded(explanation.alike)}"
    if explanation.others:
        yield f"{counted(len(explanation.others), 'module')} of the pattern unlike it: {_folded(explanation.others)}"
    if explanation.within:
        yield f"inside {explanation.within}"
    yield from explanation.unseen


def _alike(verdicts: Sequence[Any]) -> list[list[Any]]:
    """Verdicts that differ in the number of the site only, together."""
    groups: dict[str, list[Any]] = {}
    for verdict in verdicts:
        groups.setdefault(repr(verdict.model_copy(update={"number": 0})), []).append(verdict)
    return list(groups.values())


def _which(numbers: Sequence[int]) -> str:
    """Tells several sites of one kind in one forward apart."""
    return f" (sites {' '.join(str(n + 1) for n in numbers)} of its forward)" if max(numbers) else ""


def _verdict_lines(verdict: Any, which: str) -> Iterator[Text]:
    yield Text.assemble(f"stage {verdict.stage}: ", (verdict.stage_name, "bold"), which)
    yield Text(f"  {_decision(verdict)}", style=_COLOURS.get(verdict.outcome, ""))
    yield from _indented(f"{rule} does not pick it: {reason}" for rule, reason in verdict.missed.items())
    for change in () if verdict.is_done else verdict.changes:
        yield Text(f"  {change.text}{':' if change.toml else ''}", style="dim")
        yield from _indented((change.toml or "").splitlines(), by=4)


def _decision(verdict: Any) -> str:
    by = f" ({verdict.rule})" if verdict.rule else ""
    if verdict.outcome == "becomes":
        verb = "became" if verdict.is_done else "becomes"
        options = written(non_default(verdict.operator, verdict.options))
        details = [f" {options}" if options else "", f"; {verdict.remark}" if verdict.remark else ""]
        return f"{verb} {verdict.operator}{''.join(details)}{by}"
    if verdict.outcome == "became":
        return f"is {verdict.operator} already{by}"
    return (
        f"{verdict.reason}{by}"
        if verdict.outcome in ("inside", "no rule")
        else f"{verdict.outcome}: {verdict.reason}{by}"
    )


def _folded(paths: Iterable[str]) -> str:
    lines = [line.text or "(the model)" for line in fold_paths(paths)]
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


def _indented(lines: Iterable[str], *, by: int = 2) -> Iterator[Text]:
    for line in lines:
        yield Text(f"{' ' * by}{line}" if line else "")
