"""`reparam.finetune(..., find_lr=True)`: a learning-rate range test in place of training."""

from torch import nn

from reparam.api.run import Run
from reparam.atomic import write_text
from reparam.recipe.settings import TrainSettings
from reparam.reporting.figure import NO_MATPLOTLIB, can_draw
from reparam.reporting.rate_curve import draw_rate_test
from reparam.train.data import Loaders
from reparam.train.progress import Progress
from reparam.train.rate_test import RateTest, run_rate_test

#: Stem of the files.
FIND_LR = "find-lr"


def try_rates(
    model: nn.Module,
    run: Run,
    settings: TrainSettings,
    *,
    loaders: Loaders,
    teacher: nn.Module | None,
    progress: Progress,
) -> RateTest:
    """Tests learning rates on a copy of a stage's model and leaves `find-lr.json`, `.png` and `.svg` in the run.

    Raises:
        OptionError, DataError: as `run_rate_test`.
        CheckpointError: a file cannot be written.
    """
    progress.message("testing learning rates; nothing is trained")
    test = run_rate_test(
        model, loaders, settings=settings, num_classes=run.num_classes, device=run.device, teacher=teacher
    )
    stem = run.folder / FIND_LR
    write_text(stem.with_suffix(".json"), test.model_dump_json(indent=2) + "\n")
    files = draw_rate_test(test, stem) if can_draw() else ()
    if not files:
        progress.message(NO_MATPLOTLIB)
    progress.message(f"wrote {', '.join(file.name for file in (stem.with_suffix('.json'), *files))} to {run.folder}")
    return test
