"""`reparam models`: what a recipe would convert in each of many timm architectures."""

from typing import TYPE_CHECKING

import typer

import reparam
from reparam_cli.options import AsJson
from reparam_cli.streams import only_results_on_stdout, plain, print_json
from reparam_cli.survey_options import Everything, Jobs, MemoryGb, Patterns, SurveyRecipe, Timeout

if TYPE_CHECKING:
    from reparam import Examination, SurveyStep


def models(
    patterns: Patterns = None,
    *,
    everything: Everything = False,
    recipe: SurveyRecipe = "shiftaddvit",
    jobs: Jobs = 1,
    timeout: Timeout = 120.0,
    memory_gb: MemoryGb = 10.0,
    as_json: AsJson = False,
) -> None:
    """List what a recipe would convert in timm's architectures, and why the rest stays. Needs no weights.

    Without a pattern it lists the families. Stopped by Ctrl-C, it lists what it has.
    """
    if not patterns and not everything:
        _show_families(as_json=as_json)
        return
    from reparam_cli.render.coverage import survey_progress_on  # Rich, imported only when there is something to draw
    from reparam_cli.render.screen import message_console

    found: list[Examination] = []
    stopped = False
    with only_results_on_stdout(), survey_progress_on(message_console()) as progress:

        def collect(step: "SurveyStep") -> None:
            progress(step)
            if step.examination is not None:
                found.append(step.examination)

        try:
            reparam.list_models(
                patterns or "*", recipe=recipe, jobs=jobs, timeout=timeout, memory_gb=memory_gb, progress=collect
            )
        except KeyboardInterrupt:
            stopped = True
    _show_models(sorted(found, key=lambda examination: examination.name), as_json=as_json)
    if stopped:
        raise KeyboardInterrupt  # main turns it into a sentence and exit code 130
    if any(examination.failures for examination in found):
        raise typer.Exit(1)


def _show_families(*, as_json: bool) -> None:
    with only_results_on_stdout():
        families = reparam.model_families()
    if as_json:
        print_json(families)
        return
    from reparam_cli.render.models import families_view
    from reparam_cli.render.screen import show

    show(families_view(families))


def _show_models(found: "list[Examination]", *, as_json: bool) -> None:
    if as_json:
        print_json([plain(examination) for examination in found])
        return
    from reparam_cli.render.models import models_view
    from reparam_cli.render.screen import show

    show(models_view(found))
