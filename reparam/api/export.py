"""`reparam.export`: a run or a model in a format to deploy."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from reparam.api.profile import original_of
from reparam.checkpoint.load import load
from reparam.checkpoint.record import WEIGHTS_NAME, read_record
from reparam.errors import ExportError
from reparam.exporting.base import FORMATS, Exported, parse_export_options


def export(
    source: str | Path | nn.Module,
    format: str,
    *,
    out: str | Path | None = None,
    base: nn.Module | Callable[[], nn.Module] | None = None,
    **options: Any,
) -> Exported:
    """Writes a model in a format to deploy.

    Args:
        source: a run, one of its stages, any checkpoint folder, or a module, which is not changed.
        format: "packed".
        out: where to write; by default in the folder of the run, under a name of the format.
        base: the dense model of a checkpoint that only its owner can build.
        options: of the format. packed: `floats` ("float16", "bf16", "float32") for parameters that are no shift
            weights; `experts` (those and "int8") for multiply experts.
    Raises:
        ExportError: no such format, or one that cannot hold the model.
        OptionError: an option that the format does not have, or not with this value.
        CheckpointError: the folder is none that reparam wrote, or `out` is in use or cannot be written.
    """
    made = FORMATS.get(format)
    chosen = parse_export_options(made, options)
    target, writer = _target(source, out, made.place), made()
    writer.refuse_place(target)
    model, extra = _opened(source, base)
    exported = writer.write(model, target, chosen, extra=extra)
    return exported.model_copy(update=_sizes_before(source))


def _target(source: str | Path | nn.Module, out: str | Path | None, place: str) -> Path:
    if out is None:
        if isinstance(source, nn.Module):
            raise ExportError(f"nothing says where to write this {type(source).__name__}; pass out=")
        return Path(source) / place
    if not isinstance(source, nn.Module) and Path(out).resolve() == Path(source).resolve():
        raise ExportError(f"{out}: is what is exported, and would be replaced. Choose another place with --out.")
    return Path(out)


def _opened(
    source: str | Path | nn.Module, base: nn.Module | Callable[[], nn.Module] | None
) -> tuple[nn.Module, Mapping[str, Any]]:
    if isinstance(source, nn.Module):
        return source, {}
    return load(source, base=base), read_record(Path(source)).extra


def _sizes_before(source: str | Path | nn.Module) -> dict[str, int]:
    if isinstance(source, nn.Module):
        return {}
    files = {"source_bytes": Path(source) / WEIGHTS_NAME}
    if (dense := original_of(source)) is not None:
        files["dense_bytes"] = dense / WEIGHTS_NAME
    return {name: file.stat().st_size for name, file in files.items()}
