"""`reparam.profile`: parameters, operations, modelled energy, size on disc, and latency measured here."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from reparam.api.evaluate import EVALUATION_NAME
from reparam.api.subject import is_checkpoint, resolve_subject, total_of
from reparam.checkpoint.load import load
from reparam.checkpoint.record import WEIGHTS_NAME
from reparam.cost.array_layers import EYERISS, price_on_array
from reparam.cost.count import ModuleCount, count_modules
from reparam.cost.energy import Energy, as_int8, price
from reparam.cost.energy_table import MemoryLevels, energy_tables, load_table
from reparam.cost.latency import Latency, measure_latency
from reparam.errors import CheckpointError, ModelError
from reparam.graph.provenance import provenance_of
from reparam.models.build import build_model
from reparam.models.known import spec_of
from reparam.models.spec import ModelSpec
from reparam.ops.routing import Router
from reparam.recipe.schema import Frozen
from reparam.trace.probe import probe
from reparam.trace.record import Trace
from reparam.train.evaluate import Evaluation


class Profile(Frozen):
    """What one image costs. Counts are exact where they are counted; `latency` was measured here or is None.

    `operations` maps "mul.f32" and the like to counts per image, `modules` splits them in the order of the forward.
    `experts` says where mixtures of experts sent their tokens in those counts: "measured" shares, or the "balanced"
    load (modelled); None without mixtures. `uncounted` tells how often torch functions ran that have no formula.
    `energies` are modelled from the counts, one for each table; `int8_energies` are those of the same operations in
    int8, for a model that is dense: the baseline that a converted one must beat.
    """

    name: str
    parameters: int
    operations: dict[str, int]
    uncounted: dict[str, int]
    experts: Literal["measured", "balanced"] | None
    file_bytes: int | None
    latency: Latency | None
    modules: tuple[ModuleCount, ...]
    energies: tuple[Energy, ...]
    int8_energies: tuple[Energy, ...]


def profile(
    source: str | Path | nn.Module,
    *,
    example_input: Tensor | None = None,
    batch_size: int = 1,
    measure: bool = True,
    mult_share: Mapping[str, float] | None = None,
    tables: Sequence[str | Path] | None = None,
    memory: MemoryLevels | None = None,
) -> Profile:
    """Counts and times a model.

    Args:
        source: a checkpoint folder, a model name (timed with random weights), or a module.
        example_input: one batch; wanted for models whose input nothing else tells.
        batch_size: images per timed forward, unless `example_input` says.
        measure: time it; without, nothing is run.
        mult_share: measured share of tokens for the multiply expert, by router, as an `Evaluation` holds it; of a
            checkpoint folder by default that of its evaluate.json.
        tables: energy tables, by name or file; by default all that are installed and price the memory. The name
            "shiftaddvit-eyeriss" is the paper's own accounting, which searches the tiling of each layer: some seconds.
        memory: where weights and activations lie; by default moving them costs nothing. The tables must price it.
    Raises:
        CostError: no such table, or no such memory in one of them.
        ModelError, CheckpointError: the source cannot be built or loaded, or its input is unknown.
    """
    model, name = _open(source, measure=measure)
    shape = _input_shape(model, example_input)
    dtype = torch.float32 if example_input is None else example_input.dtype
    shares = _measured_shares(source) if mult_share is None else mult_share
    trace = probe(model, torch.empty(shape, dtype=dtype, device="meta"))
    modules = count_modules(model, trace, mult_share=shares)
    totals = total_of(model, modules)
    priced = _energies(model, trace, totals.operations, tables=tables, memory=memory, mult_share=shares)
    energies = list(priced)
    latency = None
    if measure:
        batch = torch.randn(batch_size, *shape[1:]) if example_input is None else example_input
        latency = measure_latency(model, batch)
    weights = Path(source) / WEIGHTS_NAME if is_checkpoint(source) else None  # type: ignore[arg-type]
    return Profile(
        name=name,
        parameters=totals.parameters,
        operations=totals.operations,
        uncounted=totals.uncounted,
        experts=_experts(model, shares),
        file_bytes=weights.stat().st_size if weights else None,
        latency=latency,
        modules=modules,
        energies=tuple(energy for energy, _ in energies),
        int8_energies=tuple(int8 for _, int8 in energies),
    )


def _energies(
    model: nn.Module,
    trace: Trace,
    operations: Mapping[str, int],
    *,
    tables: Sequence[str | Path] | None,
    memory: MemoryLevels | None,
    mult_share: Mapping[str, float],
) -> Iterator[tuple[Energy, Energy]]:
    """By each table, as the model is and in int8."""
    if tables is None:
        tables = [name for name, table in energy_tables().items() if memory is None or table.memory]
    for name in tables:
        if name == EYERISS:
            by_width = (price_on_array(model, trace, mult_share=mult_share, bits=bits) for bits in (32, 8))
        else:
            table = load_table(name)
            by_width = (price(counted, table, memory=memory) for counted in (operations, as_int8(operations)))
        wide, narrow = by_width
        yield wide, narrow


def _measured_shares(source: str | Path | nn.Module) -> Mapping[str, float]:
    if isinstance(source, nn.Module) or not (Path(source) / EVALUATION_NAME).is_file():
        return {}
    path = Path(source) / EVALUATION_NAME
    try:
        return Evaluation.model_validate_json(path.read_bytes()).mult_share
    except ValidationError:
        advice = f"remove it, or run: reparam evaluate {source}"
        raise CheckpointError(f"{path} is not what reparam wrote; {advice}") from None


def _experts(model: nn.Module, shares: Mapping[str, float]) -> Literal["measured", "balanced"] | None:
    routers = [path for path, module in model.named_modules() if isinstance(module, Router)]
    if not routers:
        return None
    return "measured" if all(path in shares for path in routers) else "balanced"


def _open(source: str | Path | nn.Module, *, measure: bool) -> tuple[nn.Module, str]:
    if isinstance(source, nn.Module):
        return source, type(source).__name__
    if is_checkpoint(source):
        return load(source), str(source)
    subject = resolve_subject(str(source))
    return build_model(subject.spec) if measure else subject.model, subject.spec.name


def _input_shape(model: nn.Module, example_input: Tensor | None) -> tuple[int, ...]:
    if example_input is not None:
        return tuple(example_input.shape)
    provenance = provenance_of(model)
    if provenance is not None:
        return provenance.plan.input_shape
    spec: ModelSpec = spec_of(model)
    if spec.input_size is None:
        raise ModelError(f"nothing says what {spec.name} takes as input; pass example_input=")
    return (2, *spec.input_size)
