"""`reparam.profile`: parameters, operations, modelled energy, size, and what was measured beside the original."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from reparam.api.convert import DENSE
from reparam.api.evaluate import read_evaluation
from reparam.api.measuring import Measuring, latency_of, measure_models
from reparam.api.subject import is_checkpoint, resolve_subject, total_of
from reparam.atomic import check_file, write_text
from reparam.checkpoint.load import load
from reparam.checkpoint.record import WEIGHTS_NAME
from reparam.cost.array_layers import EYERISS, price_on_array
from reparam.cost.count import ModuleCount, count_modules
from reparam.cost.energy import Energy, as_int8, price
from reparam.cost.energy_table import MemoryLevels, energy_tables, load_table
from reparam.cost.latency import Latency
from reparam.cost.measurement import Measured
from reparam.errors import ModelError
from reparam.graph.provenance import provenance_of
from reparam.models.build import build_model
from reparam.models.known import spec_of
from reparam.models.spec import ModelSpec
from reparam.ops.routing import Router
from reparam.recipe.schema import Frozen
from reparam.trace.probe import probe
from reparam.trace.record import Trace
from reparam.train.engine import pick_device
from reparam.train.progress import Progress, Silent

PROFILE_NAME = "profile.json"


class Profile(Frozen):
    """What one image costs. Counts are exact where they are counted; what was measured was measured here, or is None.

    `operations` maps "mul.f32" and the like to counts per image, `modules` splits them in the order of the forward.
    `experts` says where mixtures of experts sent their tokens in those counts: "measured" shares, or the "balanced"
    load (modelled); None without mixtures. `uncounted` tells how often torch functions ran that have no formula.
    `energies` are modelled from the counts, one for each table; `int8_energies` are those of the same operations in
    int8, for a model that is dense: the baseline that a converted one (`is_converted`) must beat. `latency` is that of
    the model as it runs eagerly, at the first batch size of `measured`. `dense` is the profile of a run's original,
    whose measurements are in `measured`, because both were measured in turns.
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
    is_converted: bool = False
    measured: Measured | None = None
    dense: "Profile | None" = None


def profile(
    source: str | Path | nn.Module,
    *,
    example_input: Tensor | None = None,
    batch_size: int | Sequence[int] = 1,
    measure: bool = True,
    mult_share: Mapping[str, float] | None = None,
    tables: Sequence[str | Path] | None = None,
    memory: MemoryLevels | None = None,
    baselines: str | Sequence[str] = "quick",
    threads: int | None = None,
    device: str | None = None,
    with_dense: bool = True,
    write: bool = True,
    progress: Progress | None = None,
) -> Profile:
    """Counts and measures a model, and the dense original of a run beside it.

    Args:
        source: a checkpoint folder, a model name (measured with random weights), or a module.
        example_input: one batch; wanted for models whose input nothing else tells.
        batch_size: images per forward, one number or several, unless `example_input` says.
        measure: measure; without, nothing is run.
        mult_share: measured share of tokens for the multiply expert, by router, as an `Evaluation` holds it; of a
            checkpoint folder by default that of its evaluate.json.
        tables: energy tables, by name or file; by default all that are installed and price the memory. The name
            "shiftaddvit-eyeriss" is the paper's own accounting, which searches the tiling of each layer: some seconds.
        memory: where weights and activations lie; by default moving them costs nothing. The tables must price it.
        baselines: ways to run the dense original, or a model that is not converted: "quick" (those that need
            neither compiling nor exporting), "all", "none", or names, as a sequence or with commas between them.
        threads: of the CPU; torch's own number when None.
        device: such as "cpu" or "cuda:1"; CUDA where there is one when None. A module is measured where it is.
        with_dense: count and measure the original of a run, too.
        write: leave the result in a checkpoint folder, as `profile.json`.
        progress: hears what is being measured.
    Raises:
        CostError: no such table, or no such memory in one of them.
        OptionError: a batch size or number of threads below 1, an unknown baseline.
        ModelError, CheckpointError: the source cannot be built or loaded, or its input is unknown.
    """
    how = Measuring.checked(batch_size, baselines, threads)
    if write and is_checkpoint(source):
        check_file(Path(str(source)) / PROFILE_NAME)
    count = partial(_counted, example_input=example_input, tables=tables, memory=memory)
    model, name = _open(source, measure=measure)
    shares = _measured_shares(source) if mult_share is None else mult_share
    profiled = count(model, name, shares=shares, weights=_weights_file(source))
    original, dense = original_of(source) if with_dense and _is_converted(model) else None, None
    if original is not None:
        dense = load(original)
        counted = count(dense, str(original), shares={}, weights=_weights_file(original))
        profiled = profiled.model_copy(update={"dense": counted})
    tell = (progress or Silent()).message
    if measure:
        if with_dense and _is_converted(model) and original is None and how.baselines:
            tell(f"{name} has no dense original beside it, so it is measured alone, without baselines")
        where = _device_of(model) if isinstance(source, nn.Module) else pick_device(device)
        converted, plain = (model, dense) if _is_converted(model) else (None, model)
        measured = measure_models(
            _batches(model, example_input, how, device=where),
            how,
            converted=None if converted is None else converted.to(where),
            dense=None if plain is None else plain.to(where),
            evaluated=shares,
            tell=tell,
        )
        profiled = _with_measured(profiled, measured)
    if write and is_checkpoint(source):
        write_text(Path(str(source)) / PROFILE_NAME, profiled.model_dump_json(indent=2) + "\n")
    return profiled


def _counted(
    model: nn.Module,
    name: str,
    *,
    example_input: Tensor | None,
    shares: Mapping[str, float],
    weights: Path | None,
    tables: Sequence[str | Path] | None,
    memory: MemoryLevels | None,
) -> Profile:
    shape = _input_shape(model, example_input)
    dtype = torch.float32 if example_input is None else example_input.dtype
    trace = probe(model, torch.empty(shape, dtype=dtype, device="meta"))
    modules = count_modules(model, trace, mult_share=shares)
    totals = total_of(model, modules)
    priced = _energies(model, trace, totals.operations, tables=tables, memory=memory, mult_share=shares)
    energies = list(priced)
    return Profile(
        name=name,
        parameters=totals.parameters,
        operations=totals.operations,
        uncounted=totals.uncounted,
        experts=_experts(model, shares),
        file_bytes=weights.stat().st_size if weights else None,
        latency=None,
        modules=modules,
        energies=tuple(energy for energy, _ in energies),
        int8_energies=tuple(int8 for _, int8 in energies),
        is_converted=_is_converted(model),
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


def _with_measured(profiled: Profile, measured: Measured) -> Profile:
    converted, dense = (latency_of(measured.measurements, side) for side in ("converted", "dense"))
    update: dict[str, object] = {"measured": measured, "latency": converted or dense}
    if profiled.dense is not None:
        update["dense"] = profiled.dense.model_copy(update={"latency": dense})
    return profiled.model_copy(update=update)


def _batches(model: nn.Module, example_input: Tensor | None, how: Measuring, *, device: torch.device) -> list[Tensor]:
    """Random images, the same in every run, or the example input."""
    if example_input is not None:
        return [example_input.to(device)]
    shape, generator = _input_shape(model, None)[1:], torch.Generator().manual_seed(0)
    return [torch.randn(size, *shape, generator=generator).to(device) for size in how.batch_sizes]


def original_of(source: str | Path | nn.Module) -> Path | None:
    """The dense original of a run, or of the run that a stage is part of."""
    if not is_checkpoint(source):
        return None
    folder = Path(str(source))
    runs = [folder, folder.parent] if is_checkpoint(folder.parent) else [folder]
    return next((run / DENSE for run in runs if is_checkpoint(run / DENSE)), None)


def _is_converted(model: nn.Module) -> bool:
    provenance = provenance_of(model)
    return provenance is not None and bool(provenance.applied.steps)


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def _weights_file(source: str | Path | nn.Module) -> Path | None:
    return Path(str(source)) / WEIGHTS_NAME if is_checkpoint(source) else None


def _measured_shares(source: str | Path | nn.Module) -> Mapping[str, float]:
    evaluation = None if isinstance(source, nn.Module) else read_evaluation(Path(source))
    return {} if evaluation is None else evaluation.mult_share


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
