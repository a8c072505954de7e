"""Ways to run a converted model fast: each backend of `reparam.lower`, by torch and compiled, and other engines.

An engine is one of the baselines of dense models, given the lowered model instead.
"""

from collections.abc import Sequence
from functools import partial

import torch

from reparam.cost.baselines.base import BASELINES, TOLERANCES, Baseline, Inapplicable, Run
from reparam.cost.workload import Workload
from reparam.errors import BackendError, ExportError, OptionError
from reparam.exporting.base import FORMATS, Sample, parse_export_options
from reparam.lowering.base import BACKENDS, LoweringSettings
from reparam.lowering.lower import lowered_copy
from reparam.lowering.ranges import input_ranges
from reparam.suggest import did_you_mean
from reparam.train.progress import Silent

_COMPUTES_IN = {"float32": "float32", "int8": "int8", "cuda-fp8": "float8"}
#: By torch every backend can be run; OpenVINO wants a graph of standard operators.
_IN_TORCH = {"eager": "eager", "compiled": "torch.compile"}
_IN_OTHERS = {"openvino": "OpenVINO"}
#: Behind a backend's name: on fixed steps, which the timed batch gives.
_CALIBRATED = "-calibrated"


def choose_lowered_engines(wanted: str | Sequence[str]) -> tuple[Baseline, ...]:
    """Those of some names, "all" or "none"; raises OptionError for another name."""
    names = [name.strip() for name in (wanted.split(",") if isinstance(wanted, str) else wanted)]
    engines = {engine.name: engine for engine in lowered_engines()}
    for name in names:
        if name not in engines and name not in ("all", "none"):
            hint = did_you_mean(name, engines)
            known = ", ".join(["all", "none", *engines])
            raise OptionError(f'unknown way to run a converted model "{name}".{hint} Known: {known}.')
    return tuple(engine for engine in engines.values() if "all" in names or engine.name in names)


def lowered_engines() -> tuple[Baseline, ...]:
    """Every backend by torch, eagerly and compiled; the float32 one by OpenVINO; the file of `reparam export`.

    Backends whose steps may be fixed come in both ways.
    """
    forms = [form for name in BACKENDS.names() for form in (name, name + _CALIBRATED) if _is_form(form)]
    pairs = [(form, engine, words) for form in forms for engine, words in _IN_TORCH.items()]
    pairs += [("float32", engine, words) for engine, words in _IN_OTHERS.items()]
    file = Baseline(
        name="onnx+onnxruntime",
        title="exported ONNX, ONNX Runtime",
        dtype="int8",
        tolerance=TOLERANCES["int8"],
        in_torch=False,
        prepare=_from_file,
    )
    return (*(_engine(form, engine, words) for form, engine, words in pairs), file)


def _is_form(form: str) -> bool:
    return not form.endswith(_CALIBRATED) or BACKENDS.get(form.removesuffix(_CALIBRATED)).reads_ranges


def _engine(form: str, engine: str, words: str) -> Baseline:
    dtype = _COMPUTES_IN.get(form.removesuffix(_CALIBRATED), "bfloat16")
    return Baseline(
        name=f"{form}+{engine}",
        title=f"lowered {form}, {words}",
        dtype=dtype,
        tolerance=TOLERANCES[dtype],
        in_torch=engine in _IN_TORCH,
        prepare=partial(_prepared, form, engine),
    )


def _prepared(form: str, engine: str, converted: Workload) -> Run:
    try:
        ranges = input_ranges(converted.model, [converted.batch]) if form.endswith(_CALIBRATED) else {}
        lowered, _ = lowered_copy(converted.model, form.removesuffix(_CALIBRATED), LoweringSettings(ranges=ranges))
    except BackendError as error:
        first, *others = str(error).splitlines()
        raise Inapplicable(f"{first} (and {len(others)} more layers)" if others else first) from error
    with torch.no_grad():
        return BASELINES.get(engine).prepare(converted.beside(lowered))


def _from_file(converted: Workload) -> Run:
    """The file that `reparam export --format onnx` writes, for this batch size: integer weights behind scales."""
    onnx, file = FORMATS.get("onnx"), converted.folder() / "model.onnx"
    batch, tolerance = converted.batch, TOLERANCES["int8"]  # its weights are; a runtime may bring inputs to int8 too
    options = parse_export_options(
        onnx, {"dynamic_batch": False, "batch_size": len(batch), "tolerance": tolerance}
    )  # fmt: skip
    sample = Sample(images=batch, words="the timed batch", preparation={})
    try:
        onnx().write(converted.model, file, options, extra={}, sample=sample, tell=Silent().message)
    except ExportError as error:
        raise Inapplicable(str(error)) from error
    return BASELINES.get("onnxruntime").prepare(converted.beside(converted.model, onnx_file=file))
