"""Examines many architectures, each in a process of its own, and says how it goes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from reparam.journal import Journal
from reparam.survey.examine import Task, blank, examine
from reparam.survey.outline import OutlineTask, outline
from reparam.survey.pool import Bounds, Ending, run_bounded
from reparam.survey.records import Examination, Outline, Versions


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyStep:
    """One more architecture is done: `done` of `total`, or how many were done before where `name` is None."""

    what: str
    done: int
    total: int
    name: str | None = None
    examination: Examination | None = None


Progress = Callable[[SurveyStep], None]


def silent(step: SurveyStep) -> None:
    """Says nothing."""


def run_tasks(
    tasks: Sequence[Task],
    *,
    jobs: int,
    bounds: Bounds,
    done: int = 0,
    progress: Progress = silent,
) -> Iterator[Examination]:
    """Yields the examination of each task as it ends; `done` were examined before."""
    total = done + len(tasks)
    progress(SurveyStep(what="examined", done=done, total=total))
    for number, ending in enumerate(run_bounded(tasks, examine, jobs=jobs, bounds=bounds), start=done + 1):
        found = concluded(ending)
        yield found
        progress(SurveyStep(what="examined", done=number, total=total, name=found.name, examination=found))


def concluded(ending: Ending[Task]) -> Examination:
    """The record of a task, whatever ended it: what was found before a process was cut short is kept."""
    found = blank(ending.task) if ending.text is None else Examination.model_validate_json(ending.text)
    if ending.fault is None:
        return found
    where = f" (during: {found.doing})" if found.doing else ""
    return found.model_copy(update={"error": f"{ending.fault}{where}", "seconds": round(ending.seconds, 2)})


def outlines(
    names: Iterable[str],
    versions: Versions,
    *,
    jobs: int,
    bounds: Bounds,
    journal: Journal[Outline],
    progress: Progress = silent,
) -> list[Outline]:
    """The outlines of all names; those that the journal has from this version of timm are not made again."""
    wanted = sorted(names)
    known = {name: one for name, one in journal.read().items() if one.versions.timm == versions.timm}
    tasks = [OutlineTask(name=name, versions=versions) for name in wanted if name not in known]
    done = len(wanted) - len(tasks)
    progress(SurveyStep(what="outlined", done=done, total=len(wanted)))
    for number, ending in enumerate(run_bounded(tasks, outline, jobs=jobs, bounds=bounds), start=done + 1):
        one = _outlined(ending)
        journal.add(one)
        known[one.name] = one
        progress(SurveyStep(what="outlined", done=number, total=len(wanted), name=one.name))
    return [known[name] for name in wanted]


def _outlined(ending: Ending[OutlineTask]) -> Outline:
    if ending.text is not None:
        return Outline.model_validate_json(ending.text)
    task = ending.task
    return Outline(name=task.name, family="", versions=task.versions, error=ending.fault)
