"""`reparam.find_lr`: a learning-rate range test of a run's first stage, in place of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reparam.api.prepare import prepare
from reparam.api.run import Base
from reparam.api.stage import distilled_points, find_teacher, start_stage
from reparam.atomic import write_text
from reparam.processes import is_main
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.schema import Recipe
from reparam.reporting.figure import NO_MATPLOTLIB, can_draw
from reparam.reporting.rate_curve import draw_rate_test
from reparam.train.data import make_loaders
from reparam.train.progress import Progress, Silent
from reparam.train.rate_test import RateTest, run_rate_test

#: Stem of the files.
FIND_LR = "find-lr"


def find_lr(
    source: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    data: DataSettings,
    settings: Mapping[str, object] | None = None,
    stage: int | None = None,
    weights: str = "hub",
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    device: str | None = None,
    base: Base = None,
) -> RateTest:
    """Tests learning rates on the first stage, or on `stage`; leaves `find-lr.json`, `.png` and `.svg` in the run.

    Nothing is trained. Arguments are those of `finetune`.

    Raises:
        ReparamError: as `finetune`.
    """
    told = progress if progress is not None and is_main() else Silent()
    run, resolved = prepare(
        source,
        recipe=recipe,
        data=data,
        settings=settings,
        stage=stage,
        weights=weights,
        out=out,
        resume=None,
        overrides=overrides,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        model_kwargs=model_kwargs,
        allow_partial=allow_partial,
        device=device,
        base=base,
    )
    i, chosen = next(iter(resolved.items()))
    loaders = make_loaders(data, chosen, image=run.image, num_classes=run.num_classes, device=run.device)
    model, teacher = start_stage(run, i, chosen, loaders, told), find_teacher(run, chosen, told)
    points = distilled_points(run, i, model, chosen, told) if teacher is not None else ()
    told.message("testing learning rates; nothing is trained")
    test = run_rate_test(
        model,
        loaders,
        settings=chosen,
        num_classes=run.num_classes,
        device=run.device,
        teacher=teacher,
        feature_points=points,
    )
    if not is_main():
        return test
    stem = run.folder / FIND_LR
    write_text(stem.with_suffix(".json"), test.model_dump_json(indent=2) + "\n")
    files = draw_rate_test(test, stem) if can_draw() else ()
    if not files:
        told.message(NO_MATPLOTLIB)
    told.message(f"wrote {', '.join(file.name for file in (stem.with_suffix('.json'), *files))} to {run.folder}")
    return test
