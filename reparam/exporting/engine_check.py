"""Whether an exported file computes what its model does, in each engine that is here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.compare.difference import Comparison
from reparam.compare.recording import Recorder, Recording, logits_of, record_modules
from reparam.compare.records import Verification
from reparam.errors import ExportError
from reparam.exporting.base import EngineCheck, Sample
from reparam.models.model_file import ModelFile

#: Uneven, so that a file for any batch size meets two of them.
_TOGETHER = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine for a file: its name, and the file opened in it, or why it is not.

    `record` makes a recorder of the file's layers, to say where it goes wrong; None where they cannot be seen.
    """

    name: str
    file: ModelFile | None = None
    record: Callable[[], Recorder] | None = None
    missing_because: str | None = None


def check_engines(
    model: nn.Module,
    engines: Iterable[Engine],
    sample: Sample,
    *,
    tolerance: float,
    tell: Callable[[str], None],
) -> tuple[EngineCheck, ...]:
    """Compares a file's logits in each engine with those of its model.

    Raises:
        ExportError: they differ by more than the tolerance, or the model's are not finite; the message names the first
            layer that does, or is not.
    """
    batches = sample.images.split(_TOGETHER)
    with torch.no_grad():
        wanted = [Recording(logits=logits_of(model(batch))) for batch in batches]
    for batch, of_model in zip(batches, wanted, strict=True):
        if not of_model.logits.isfinite().all():
            raise ExportError(_not_finite(record_modules(model)(batch), sample))
    checks = []
    for engine in engines:
        if engine.file is None:
            checks.append(EngineCheck(engine=engine.name, skipped=engine.missing_because))
            continue
        tell(f"checking it in {engine.name}")
        comparison = Comparison("the model", "the file")
        for batch, of_model in zip(batches, wanted, strict=True):
            comparison.add(of_model, Recording(logits=engine.file(batch)))
        found = comparison.verdict(data=sample.words, tolerance=tolerance)
        if not found.agree:
            raise ExportError(_disagreement(engine, found, _first_layer(model, engine, batches[0], tolerance)))
        checks.append(_passed(engine, found))
    return tuple(checks)


def _passed(engine: Engine, found: Verification) -> EngineCheck:
    return EngineCheck(
        engine=engine.name,
        images=found.images,
        data=found.data,
        top1_agreement=found.top1_agreement,
        relative_error=found.outputs.relative_error,
        max_abs_error=found.outputs.max_abs_error,
    )


def _first_layer(model: nn.Module, engine: Engine, batch: Tensor, tolerance: float) -> str | None:
    """The path of the first layer that differs, where layers can be seen and one does."""
    if engine.record is None:
        return None
    comparison = Comparison("the model", "the file")
    comparison.add(record_modules(model)(batch), engine.record()(batch))
    first = comparison.verdict(data="", tolerance=tolerance).first
    return None if first is None else first.path


def _not_finite(of_model: Recording, sample: Sample) -> str:
    layers = ((path, tensors) for path, tensors in of_model.layers.items())
    first = next((path for path, tensors in layers if not all(tensor.isfinite().all() for tensor in tensors)), None)
    where = "" if first is None else f", first in {first}"
    return (
        f"the model's own outputs are not finite{where}, on its images ({sample.words}): no file can be compared "
        "with them. Nothing was written. Look at the weights up to there: a training that diverged, or a damaged file"
    )


def _disagreement(engine: Engine, found: Verification, layer: str | None) -> str:
    error, where = found.outputs.relative_error, "" if layer is None else f", first in {layer}"
    if error is not None:
        amount = f"by {error:.2g} of their size"
        advice = f"If that is good enough, raise --tolerance (now {found.tolerance:g})"
    else:
        amount = "by values that are not finite" if found.outputs.max_abs_error is None else "whose are all 0"
        advice = "No tolerance lets that pass"
    return (
        f"in {engine.name} the file gives other outputs than the model, {amount}{where}; the same class for "
        f"{found.top1_agreement:.1f} % of {found.images} images. Nothing was written. {advice}"
    )
