"""Ways to run a converted model fast: each backend of `reparam.lower`, by torch, compiled, and through other engines.

An engine is one of the baselines of dense models, given the lowered model instead.
"""

from collections.abc import Sequence
from functools import partial

import torch

from reparam.cost.baselines.base import BASELINES, TOLERANCES, Baseline, Inapplicable, Run
from reparam.cost.workload import Workload
from reparam.errors import BackendError, OptionError
from reparam.lowering.base import BACKENDS, LoweringSettings
from reparam.lowering.lower import lowered_copy
from reparam.suggest import did_you_mean

_COMPUTES_IN = {"float32": "float32", "int8": "int8"}
#: By torch every backend can be run; others want a graph of standard operators.
_IN_TORCH = {"eager": "eager", "compiled": "torch.compile"}
_THROUGH_ONNX = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


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
    """Every backend by torch, eagerly and compiled, and the float32 one through ONNX Runtime and OpenVINO."""
    pairs = [(backend, engine, words) for backend in BACKENDS.names() for engine, words in _IN_TORCH.items()]
    pairs += [("float32", engine, words) for engine, words in _THROUGH_ONNX.items()]
    return tuple(_engine(backend, engine, words) for backend, engine, words in pairs)


def _engine(backend: str, engine: str, words: str) -> Baseline:
    dtype = _COMPUTES_IN.get(backend, "bfloat16")
    return Baseline(
        name=f"{backend}+{engine}",
        title=f"lowered {backend}, {words}",
        dtype=dtype,
        tolerance=TOLERANCES[dtype],
        in_torch=engine in _IN_TORCH,
        prepare=partial(_prepared, backend, engine),
    )


def _prepared(backend: str, engine: str, converted: Workload) -> Run:
    try:
        lowered, _ = lowered_copy(converted.model, backend, LoweringSettings())
    except BackendError as error:
        first, *others = str(error).splitlines()
        raise Inapplicable(f"{first} (and {len(others)} more layers)" if others else first) from error
    with torch.no_grad():
        return BASELINES.get(engine).prepare(converted.beside(lowered))
