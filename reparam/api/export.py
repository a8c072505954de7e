"""`reparam.export`: a run or a model in a format to deploy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from reparam.api.check_images import images_for
from reparam.api.evaluate import format_by
from reparam.api.profile import original_of
from reparam.checkpoint.load import load
from reparam.checkpoint.record import WEIGHTS_NAME, read_record
from reparam.errors import ExportError, OptionError
from reparam.exporting.base import FORMATS, Exported, Sample, parse_export_options
from reparam.graph.provenance import provenance_of
from reparam.lowering.base import lowered_path
from reparam.models.given import refuse_other
from reparam.models.known import spec_of
from reparam.recipe.data_settings import DataSettings
from reparam.train.progress import Progress, Silent

#: That a program is checked on.
_IMAGES = 32


def export(
    source: str | Path | nn.Module,
    format: str,
    *,
    out: str | Path | None = None,
    base: nn.Module | Callable[[], nn.Module] | None = None,
    data: DataSettings | None = None,
    images: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Exported:
    """Writes a model in a format to deploy.

    Args:
        source: a run, one of its stages, any checkpoint folder, or a module, which is not changed.
        format: "packed", "onnx" or "pt2".
        out: where to write; by default in the folder of the run, under a name of the format.
        base: the dense model of a checkpoint that only its owner can build.
        data: images that a program is checked on, spread over the evaluation split; without, seeded random ones.
        images: how many; 32 by default.
        progress: hears what is being done.
        options: of the format. packed: `floats` ("float16", "bf16", "float32") for parameters that are no shift
            weights; `experts` (those and "int8") for multiply experts. onnx and pt2: `dynamic_batch`, or
            `batch_size` of a fixed one; `tolerance` of the check. onnx: `opset`. pt2: `compile` for a package of
            AOTInductor.
    Raises:
        ExportError: no such format, or one that cannot hold the model.
        OptionError: an option that the format does not have, or not with this value.
        CheckpointError: the folder is none that reparam wrote, or `out` is in use or cannot be written.
        ModelError: `source` is of another kind, or nothing says which images the model takes.
        DataError: the data cannot be read.
    """
    refuse_other(source, (nn.Module, str, Path), wanted="a model or the folder of a run")
    made = FORMATS.get(format)
    chosen = parse_export_options(made, options)
    # Before the place is tried: that makes its folder, which for a mistyped run is the run itself.
    extra = {} if isinstance(source, nn.Module) else read_record(Path(source)).extra
    target, writer = _target(source, out, made.place), made()
    writer.refuse_place(target)
    if images is not None and images < 1:
        raise OptionError(f"images {images}: wanted 1 or more to check the file on")
    if not made.is_checked and (data is not None or images is not None):
        raise OptionError(f"format {format} is not checked on images; leave them out")
    model = _opened(source, base)
    sample = _sample(model, data or DataSettings(), images) if made.is_checked else None
    exported = writer.write(model, target, chosen, extra=extra, sample=sample, tell=(progress or Silent()).message)
    return exported.model_copy(update=_sizes_before(source))


def _target(source: str | Path | nn.Module, out: str | Path | None, place: str) -> Path:
    if out is None:
        if isinstance(source, nn.Module):
            raise ExportError(f"nothing says where to write this {type(source).__name__}; pass out=")
        return Path(source) / place
    if not isinstance(source, nn.Module) and Path(out).resolve() == Path(source).resolve():
        raise ExportError(f"{out}: is what is exported, and would be replaced. Choose another place with --out.")
    return Path(out)


def _opened(source: str | Path | nn.Module, base: nn.Module | Callable[[], nn.Module] | None) -> nn.Module:
    if isinstance(source, nn.Module):
        if (path := lowered_path(source)) is not None:
            raise ExportError(
                f"the model is lowered for inference ({path or 'itself'} is); export the converted model, which the "
                "format lowers in its own way"
            )
        return source
    return load(source, base=base)


def _sample(model: nn.Module, data: DataSettings, count: int | None) -> Sample:
    made = provenance_of(model)
    spec, plan = (spec_of(model), None) if made is None else (made.spec, made.plan)
    if spec.input_size is None and plan is None:
        raise ExportError(
            f"nothing says which images this {type(model).__name__} takes; export a converted one or a run"
        )
    image = format_by(spec, plan, data)
    images, words = images_for(image, data, count=_IMAGES if count is None else count)
    return Sample(images=images, words=words, preparation=image.preparation)


def _sizes_before(source: str | Path | nn.Module) -> dict[str, int]:
    if isinstance(source, nn.Module):
        return {}
    files = {"source_bytes": Path(source) / WEIGHTS_NAME}
    if (dense := original_of(source)) is not None:
        files["dense_bytes"] = dense / WEIGHTS_NAME
    return {name: file.stat().st_size for name, file in files.items()}
