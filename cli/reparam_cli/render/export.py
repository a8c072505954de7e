"""What an export wrote: sizes by kind of tensor, and of the files."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from reparam_cli.render.screen import file_size, plain_table

if TYPE_CHECKING:
    from reparam import Exported


def export_view(exported: "Exported") -> RenderableType:
    """Returns one row for each kind of tensor and form, under them the file beside the ones it comes from."""
    lines = [Text(note, style="yellow") for note in exported.notes]
    for size, what in ((exported.source_bytes, "the run's weights"), (exported.dense_bytes, "its dense original's")):
        if size:
            lines.append(Text(f"{exported.file_bytes / size:.3f}x {what}, {file_size(size)}", style="dim"))
    what = "" if exported.checks else "weights of "  # a folder holds more than them
    written = Text(f"wrote {exported.out}, {what}{file_size(exported.file_bytes)}")
    checks = [_checks(exported)] if exported.checks else []
    if not exported.parts:
        return Group(*checks, written, *lines)
    table = plain_table("", "tensors", "before", "after")
    table.add_column("as")
    for part in exported.parts:
        table.add_row(part.kind, str(part.tensors), file_size(part.before), file_size(part.after), part.form)
    return Group(table, *checks, written, *lines)


def _checks(exported: "Exported") -> RenderableType:
    """One row for each engine: how far the file's outputs are from the model's."""
    table = plain_table("checked in", "images", "same class", "relative error", "largest error")
    for check in exported.checks:
        if check.skipped is not None:
            table.add_row(Text(f"{check.engine}: skipped, {check.skipped}", style="dim"))
            continue
        agreement = f"{check.top1_agreement:.2f} %"
        errors = (f"{error:.1e}" for error in (check.relative_error, check.max_abs_error) if error is not None)
        table.add_row(Text(check.engine), str(check.images), agreement, *errors)
    return table
