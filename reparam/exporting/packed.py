"""packed: a checkpoint folder whose shift weights have the bits that they need, and whose other parameters are halves.

`reparam.load` makes an ordinary converted model of it, whose shift layers have the rounded weights to the bit.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import nn

from reparam.atomic import atomic_folder, refuse_foreign
from reparam.checkpoint.packing import Float, PackedTensors, Stored, pack_tensors
from reparam.checkpoint.record import CONFIG_NAME, WEIGHTS_NAME, read_record
from reparam.checkpoint.save import write_packed_checkpoint
from reparam.errors import CheckpointError, ExportError
from reparam.exporting.base import Exported, ExportedPart, ExportFormat, ExportOptions, Sample, export_format
from reparam.graph.provenance import provenance_of

_NAMED = 5


class PackedOptions(ExportOptions):
    """Options of the packed format."""

    floats: Float = Field("float16", description="Type of parameters that are no shift weights.")
    experts: Float | Literal["int8"] | None = Field(
        None, description="Type of the weights of multiply experts; int8 has a scale per channel. None: as `floats`."
    )


@export_format("packed", place="packed")
class PackedFormat(ExportFormat):
    """config.json and model.safetensors, as `reparam.save` writes them, with packed tensors."""

    Options = PackedOptions

    def refuse_place(self, out: Path) -> None:
        """Takes a new or empty folder, or one that holds an older packed export."""
        refuse_foreign(out)
        if (out / CONFIG_NAME).is_file() and read_record(out).packed is None:
            raise CheckpointError(
                f"{out}: the folder holds a model that is not packed, which the export would replace. Choose another "
                "folder with --out."
            )

    def write(
        self,
        model: nn.Module,
        out: Path,
        options: PackedOptions,
        *,
        extra: Mapping[str, Any],
        sample: Sample | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> Exported:
        """Packs and writes a converted model."""
        provenance = provenance_of(model)
        if provenance is None or not provenance.applied.steps:
            raise ExportError(
                "the model is not converted, so it has no weights to pack. Convert it first: reparam convert MODEL "
                "--recipe R"
            )
        packed = pack_tensors(model, floats=options.floats, experts=options.experts or options.floats)
        with atomic_folder(out) as draft:
            write_packed_checkpoint(model, draft, packed, extra=extra)
        return Exported(
            format=self.name,
            out=str(out),
            file_bytes=(out / WEIGHTS_NAME).stat().st_size,
            parts=_parts(packed.stored),
            notes=_notes(packed, options),
        )


def _parts(stored: Iterable[Stored]) -> tuple[ExportedPart, ...]:
    """One for each kind and form, the largest first."""
    alike: dict[tuple[str, str], list[Stored]] = {}
    for one in stored:
        alike.setdefault((one.kind, one.form), []).append(one)
    parts = [
        ExportedPart(
            kind=kind,
            form=form,
            tensors=sum(len(one.names) for one in group),
            before=sum(one.before for one in group),
            after=sum(one.after for one in group),
        )
        for (kind, form), group in alike.items()
    ]
    return tuple(sorted(parts, key=lambda part: -part.before))


def _notes(packed: PackedTensors, options: PackedOptions) -> tuple[str, ...]:
    misfits = [one.names[0] for one in packed.stored if one.misfit]
    if not misfits:
        return ()
    more = f" and {len(misfits) - _NAMED} more" if len(misfits) > _NAMED else ""
    wanted = " or ".join(dict.fromkeys([options.floats, options.experts or options.floats]))
    return (f"left as they are, because {wanted} cannot hold their values: {', '.join(misfits[:_NAMED])}{more}",)
