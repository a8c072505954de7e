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
    written = Text(f"wrote {exported.out}, weights of {file_size(exported.file_bytes)}")
    if not exported.parts:
        return Group(written, *lines)
    table = plain_table("", "tensors", "before", "after")
    table.add_column("as")
    for part in exported.parts:
        table.add_row(part.kind, str(part.tensors), file_size(part.before), file_size(part.after), part.form)
    return Group(table, written, *lines)
