"""`reparam.report`: one HTML page about a run, or two side by side, that needs no other file and no network."""

from datetime import UTC, datetime
from pathlib import Path

from reparam.api.run import Base
from reparam.api.run_facts import gather_run
from reparam.atomic import check_file, write_text, writing
from reparam.checkpoint.record import read_record
from reparam.errors import CheckpointError, OptionError
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.schema import Frozen
from reparam.reporting.environment import this_environment
from reparam.reporting.page.page import render_page
from reparam.reporting.page.records import Missing, PageFacts, RunFacts
from reparam.train.progress import Progress, Silent

REPORT_NAME = "report.html"
_SUFFIXES = (".html", ".htm")
#: What a page begins with, and so what may be replaced.
_DOCTYPE = b"<!doctype html>"


class MissingSection(Frozen):
    """A section that a run has nothing for, why, and the command that makes it."""

    run: str
    section: str
    why: str
    command: str | None


class Report(Frozen):
    """The page that was written, its size, and what it could not show."""

    out: Path
    file_bytes: int
    missing: tuple[MissingSection, ...]


def report(
    run: str | Path,
    run_b: str | Path | None = None,
    *,
    out: str | Path | None = None,
    data: DataSettings | None = None,
    images: int = 8,
    measure: bool = True,
    base: Base = None,
    progress: Progress | None = None,
) -> Report:
    """Writes the page: figures, modules, costs by block, exponents, curves, routing over images, sensitivity, commands.

    Args:
        run: the folder of a run.
        run_b: another run, to be shown beside it.
        out: .html file to write; `report.html` in the first run when None. Only a page is replaced.
        data: where the images of the routing map come from; when None the folder that the run was trained on, if it
            is still there.
        images: how many images, evenly spaced over the evaluation split; 0 leaves the map out.
        measure: time the models here.
        base: the dense model of a run that only its owner can build.
        progress: who listens.
    Raises:
        CheckpointError: no run, a damaged one, or a page that cannot be written, or would replace another kind of file.
        DataError: the data cannot be read, or do not fit the model.
        OptionError: fewer than 0 images.
    """
    if images < 0:
        raise OptionError(f"images: wanted at least 0, got {images}")
    target = Path(run) / REPORT_NAME if out is None else Path(out)
    told = progress or Silent()
    folders = [Path(folder) for folder in (run, run_b) if folder is not None]
    for folder in folders:
        read_record(folder)  # before anything costs time, or makes a folder
    _check_target(target)
    runs = tuple(
        gather_run(folder, data=data, images=images, measure=measure, base=base, progress=told) for folder in folders
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = render_page(PageFacts(runs=runs, environment=this_environment(), made=made))
    write_text(target, page)
    missing = tuple(section for found in runs for section in _missing(found))
    return Report(out=target, file_bytes=len(page.encode()), missing=missing)


def _check_target(target: Path) -> None:
    if target.suffix.lower() not in _SUFFIXES:
        raise CheckpointError(
            f"{target}: a report is an HTML page. Wanted a name that ends in .html, got {target.name}."
        )
    if target.is_file():
        with writing(target), target.open("rb") as file:
            begins = file.read(len(_DOCTYPE))
        if begins.lower() != _DOCTYPE:
            raise CheckpointError(f"{target}: the file is no report, so it is not replaced. Choose another name.")
    check_file(target)


def _missing(run: RunFacts) -> list[MissingSection]:
    sections = {"routing": run.routing, "sensitivity": run.sensitivity}
    return [
        MissingSection(run=run.folder, section=name, why=section.why, command=section.command)
        for name, section in sections.items()
        if isinstance(section, Missing)
    ]
