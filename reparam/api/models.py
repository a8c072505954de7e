"""`reparam.list_models`: what a recipe would convert in each of many timm architectures."""

from collections.abc import Sequence
from pathlib import Path

from reparam import __version__
from reparam.api.recipes import check_recipe
from reparam.recipe.relaxed import relaxed
from reparam.recipe.schema import Recipe
from reparam.survey.examine import Task, current_versions
from reparam.survey.pool import Bounds, start_server
from reparam.survey.records import Examination
from reparam.survey.run import Progress, run_tasks, silent
from reparam.survey.select import families, select

_GIGABYTE = 10**9


def list_models(
    pattern: str | Sequence[str] = "*",
    *,
    recipe: str | Path | Recipe = "shiftaddvit",
    jobs: int = 1,
    timeout: float = 120.0,
    memory_gb: float = 10.0,
    progress: Progress = silent,
) -> tuple[Examination, ...]:
    """Plans a recipe for each timm architecture that a pattern picks; needs no weights.

    Each is planned in a process of its own. A script that calls this needs `if __name__ == "__main__":`, as for every
    use of multiprocessing.

    Args:
        pattern: a name, a shorthand or a glob such as "swin*", or several of them.
        recipe: shipped name, path of a .toml file, or a Recipe. Rules that pick nothing are passed over.
        jobs: how many processes at once.
        timeout: seconds for each architecture.
        memory_gb: memory for each architecture, in GB (10**9 bytes), where the system can bound it.
        progress: called before the first and after each architecture.
    Raises:
        ModelError: a pattern that picks nothing.
        RecipeError: the recipe cannot be found or has faults.
    """
    start_server()
    wanted = relaxed(check_recipe(recipe))
    versions = current_versions(__version__)
    tasks = [Task(name=name, recipe=wanted, depth="plan", versions=versions, max_params=0) for name in select(pattern)]
    bounds = Bounds(seconds=timeout, memory=int(memory_gb * _GIGABYTE))
    found = run_tasks(tasks, jobs=jobs, bounds=bounds, progress=progress)
    return tuple(sorted(found, key=lambda examination: examination.name))


def model_families(pattern: str | Sequence[str] = "*") -> dict[str, list[str]]:
    """The timm architectures that a pattern picks, by family (the module of timm that has them); builds nothing."""
    return families(select(pattern))
