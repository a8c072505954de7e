"""`reparam.coverage`: many architectures converted and checked, each in its own process; a page and a JSON file."""

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from reparam import __version__
from reparam.api.recipes import check_recipe
from reparam.atomic import write_text
from reparam.errors import CheckpointError
from reparam.journal import Journal
from reparam.recipe.relaxed import relaxed
from reparam.recipe.schema import Recipe
from reparam.survey.examine import Task, current_versions
from reparam.survey.outline import representatives as representatives_of
from reparam.survey.page import page
from reparam.survey.pool import Bounds, start_server
from reparam.survey.records import Coverage, Depth, Examination, Outline
from reparam.survey.run import Progress, outlines, run_tasks, silent
from reparam.survey.select import select
from reparam.survey.targets import check_targets

#: So many patterns are named on the page.
_NAMED = 6
_GIGABYTE = 10**9


def coverage(
    pattern: str | Sequence[str] = "*",
    *,
    recipe: str | Path | Recipe = "shiftaddvit",
    depth: Depth = "plan",
    representatives: bool = False,
    json_file: str | Path | None = None,
    out: str | Path | None = None,
    joined: Sequence[str | Path] = (),
    jobs: int = 1,
    timeout: float = 600.0,
    memory_gb: float = 10.0,
    max_params: int = 700_000_000,
    fresh: bool = False,
    retry: bool = False,
    progress: Progress = silent,
) -> Coverage:
    """Examines each timm architecture that a pattern picks, in a process of its own, and writes down what it found.

    Each finished architecture is one line of a journal beside the JSON file, so a run that was stopped goes on where it
    stopped. A script that calls this needs `if __name__ == "__main__":`, as for every use of multiprocessing.

    Args:
        pattern: a name, a shorthand or a glob such as "swin*", or several of them.
        recipe: shipped name, path of a .toml file, or a Recipe. Rules that pick nothing are passed over.
        depth: "plan" needs no weights; "full" converts with random weights and checks the result.
        representatives: only the smallest of each family, model class and set of module classes.
        json_file: where the result goes; default `runs/coverage-<recipe>-<depth>.json`.
        out: where the Markdown page goes; none is written when None.
        joined: results of earlier runs that the page shows as well, before this one.
        jobs: how many processes at once.
        timeout: seconds for each architecture.
        memory_gb: memory for each architecture, in GB (10**9 bytes), where the system can bound it.
        max_params: above this many parameters, "full" is left out, and that is recorded.
        fresh: forget the journal.
        retry: examine again what failed according to the journal.
        progress: called before the first and after each architecture.
    Raises:
        ModelError: a pattern that picks nothing.
        RecipeError: the recipe cannot be found or has faults.
        CheckpointError: a journal of another recipe or depth, or a file that cannot be read or written, or is not ours.
    """
    start_server()
    wanted = relaxed(check_recipe(recipe))
    target = Path(json_file) if json_file is not None else Path("runs") / f"coverage-{wanted.name}-{depth}.json"
    check_targets(target, out)
    others = [_read(Path(path)) for path in joined]
    chosen = dict.fromkeys(select(pattern), 1)  # before the journal, which a misspelt name should not cost
    journal = Journal(target.with_suffix(".jsonl"), Examination, fresh=fresh)
    known = _known(journal, recipe=wanted.name, depth=depth, retry=retry)
    bounds = Bounds(seconds=timeout, memory=int(memory_gb * _GIGABYTE))
    versions = current_versions(__version__)
    total = len(chosen)
    if representatives:
        outlined = Journal(target.with_name(f"outlines-timm-{versions.timm}.jsonl"), Outline, fresh=False)
        made = outlines(chosen, versions, jobs=jobs, bounds=bounds, journal=outlined, progress=progress)
        chosen = representatives_of(made)
    tasks = [
        Task(name=n, recipe=wanted, depth=depth, versions=versions, max_params=max_params, stands_for=count)
        for n, count in chosen.items()
        if n not in known
    ]
    done = len(chosen) - len(tasks)
    for examination in run_tasks(tasks, jobs=jobs, bounds=bounds, done=done, progress=progress):
        journal.add(examination)
        known[examination.name] = examination
    result = Coverage(
        recipe=wanted.name,
        depth=depth,
        machine=machine(),
        versions=versions,
        scope=_scope(pattern, total=total, chosen=len(chosen), representatives=representatives),
        examinations=tuple(known[n].model_copy(update={"stands_for": c}) for n, c in sorted(chosen.items())),
    )
    write_text(target, result.model_dump_json(indent=1) + "\n")
    if out is not None:
        write_text(out, page([*others, result]))
    return result


def machine() -> str:
    """What kind of machine this is; every examination runs on its CPU."""
    return f"{os.cpu_count()} cores, CPU"


def _known(journal: Journal[Examination], *, recipe: str, depth: Depth, retry: bool) -> dict[str, Examination]:
    records = journal.read()
    foreign = [r for r in records.values() if (r.recipe, r.depth) != (recipe, depth)]
    if foreign:
        raise CheckpointError(
            f'the journal holds "{foreign[0].recipe}" at depth {foreign[0].depth}; wanted "{recipe}" at depth {depth}. '
            "Name another --json file, or start over with --fresh."
        )
    return {name: record for name, record in records.items() if not (retry and record.failures)}


def _read(path: Path) -> Coverage:
    try:
        return Coverage.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: this is no result of `reparam coverage` of this version ({error.error_count()} faults). "
            "Make it again."
        ) from None


def _scope(pattern: str | Sequence[str], *, total: int, chosen: int, representatives: bool) -> str:
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    more = f" and {len(patterns) - _NAMED} more" if len(patterns) > _NAMED else ""
    named = f" ({', '.join(patterns[:_NAMED])}{more})" if patterns != ["*"] else ""
    picked = f"{total} architectures{named}"
    if representatives:
        return f"{chosen} representatives of {picked}: the smallest of each family, class and set of module classes"
    return picked
