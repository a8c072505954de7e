"""The setting `latency` carried out: expert latencies set on the routers of a model and in the plan it was made by."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, distributed, nn

from reparam.atomic import write_text
from reparam.cost.expert_latency import ExpertLatency, ExpertProxy, measure_experts, model_experts
from reparam.graph.latencies import Pair, recipe_latencies, with_latencies
from reparam.graph.provenance import Provenance, attach, provenance_of
from reparam.ops.moe import MoeMlp
from reparam.processes import is_main, process_count
from reparam.recipe.expert_latency import parse_latency

#: What was found about each mixture, by path.
Found = Mapping[str, ExpertLatency | ExpertProxy]


def set_expert_latencies_(model: nn.Module, latency: str, example_input: Tensor) -> Found:
    """Sets the latencies of every mixture by the training setting `latency`; a saved model keeps them.

    An MLP with a router for each layer is taken as a whole: the times of its layers are added. With several processes
    all take what the first one measured.

    Args:
        model: as `convert` or a stage of a run made it, on the device of `example_input`.
        latency: recipe, measured, modelled, or two numbers.
        example_input: of the shape of one training batch; its values do not matter.
    Returns:
        What was measured or modelled, by path; nothing for the other settings, and without mixtures.
    """
    provenance = provenance_of(model)
    mixtures = {path: module for path, module in model.named_modules() if isinstance(module, MoeMlp)}
    if provenance is None or not mixtures:
        return {}
    found = _find(model, latency, example_input)
    pairs = _pairs(mixtures, latency, found, provenance)
    for path, mixture in mixtures.items():
        mixture.set_latency_(pairs[path])
    plan = with_latencies(provenance.plan, {mixture.place: pairs[path] for path, mixture in mixtures.items()})
    attach(model, replace(provenance, plan=plan))
    return found


def write_latencies(file: Path, found: Found) -> None:
    """Writes a table: a row for each mixture with what its experts cost, alpha, and the target."""
    rows = [
        {
            "mixture": path,
            **figures.model_dump(),
            "alpha_multiply": _alpha(figures),
            "target_mult_share": 1 - _alpha(figures),
        }
        for path, figures in found.items()
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def _find(model: nn.Module, latency: str, example_input: Tensor) -> Found:
    if latency == "measured":
        return _from_first_process(lambda: measure_experts(model, example_input), example_input)
    return model_experts(model) if latency == "modelled" else {}


def _from_first_process(find: Callable[[], Found], like: Tensor) -> Found:
    """What the first process finds: clocks differ, and processes must balance by the same numbers."""
    if process_count() == 1:
        return find()
    told = [find() if is_main() else {}]
    distributed.broadcast_object_list(told, device=like.device)
    return told[0]


def _pairs(mixtures: Mapping[str, MoeMlp], latency: str, found: Found, provenance: Provenance) -> dict[str, Pair]:
    source = parse_latency(latency)
    if isinstance(source, tuple):
        return dict.fromkeys(mixtures, source)
    if source == "recipe":
        told = recipe_latencies(provenance.plan)
        return {path: told[mixture.place] for path, mixture in mixtures.items()}
    return {path: _whole(path, found) for path in mixtures}


def _whole(path: str, found: Found) -> Pair:
    parts = [figures.pair for inner, figures in found.items() if inner == path or inner.startswith(f"{path}.")]
    multiply, shift = (sum(times) for times in zip(*parts, strict=True))
    return multiply, shift


def latency_lines(found: Found) -> Iterator[str]:
    """What was found, in words: a line for all mixtures that are alike."""
    alike: dict[ExpertLatency | ExpertProxy, list[str]] = {}
    for path, figures in found.items():
        alike.setdefault(figures, []).append(path)
    for figures, paths in alike.items():
        share = _alpha(figures)
        yield (
            f"expert latencies, {_how(figures)}: {_where(paths)}: {_costs(figures)}, alpha {share:.2f} : "
            f"{1 - share:.2f}, target {1 - share:.0%} multiplied"
        )


def _alpha(figures: ExpertLatency | ExpertProxy) -> float:
    multiply, shift = figures.pair
    return multiply / (multiply + shift)


def _how(figures: ExpertLatency | ExpertProxy) -> str:
    if isinstance(figures, ExpertProxy):
        return "modelled by energy per operation"
    threads = f"{figures.threads} thread{'s' if figures.threads != 1 else ''}"
    return f"{figures.source} ({figures.device}, {threads}, batch {figures.batch})"


def _where(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} mixtures from {paths[0]} to {paths[-1]}"


def _costs(figures: ExpertLatency | ExpertProxy) -> str:
    multiply, shift = figures.pair
    if isinstance(figures, ExpertProxy):
        return f"multiply {multiply / 1e3:.3g} nJ, shift {shift / 1e3:.3g} nJ a token"
    return f"multiply {multiply:.3g} ms, shift {shift:.3g} ms"
