"""What a verb works on: a model by name, a module of the user's own, or a checkpoint folder, with its example input."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reparam.checkpoint.record import CONFIG_NAME
from reparam.cost.count import ModuleCount, count_modules
from reparam.errors import ModelError
from reparam.graph.records import Totals
from reparam.models.build import build_model, build_spec
from reparam.models.empty import build_empty
from reparam.models.given import refuse_other
from reparam.models.known import spec_of
from reparam.models.spec import ModelSpec
from reparam.trace.probe import ExampleInput
from reparam.trace.record import Trace

#: Two images: a batch of one would hide operations that mix images.
PROBE_BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A dense model, the spec that builds it again, and an input it takes. A named model has no weights yet."""

    model: nn.Module
    spec: ModelSpec
    example_input: ExampleInput


def resolve_subject(
    model: str | nn.Module,
    *,
    example_input: ExampleInput | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    only_look: bool = False,
) -> Subject:
    """Builds a named model without weights, or takes the user's module as it is.

    With `only_look`, buffers of timm's models have no values either: some models compute theirs from their weights, and
    would be built in full for them. Weights cannot be loaded into such a model.

    Raises:
        ModelError: unknown model, arguments it does not take, or no way to know its input.
    """
    options = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, "model_kwargs": model_kwargs}
    if isinstance(model, str):
        spec = build_spec(model, **options)  # type: ignore[arg-type]
        is_shape_enough = only_look and spec.source != "file"
        built = build_model(spec, device="meta") if is_shape_enough else build_empty(spec)
        return Subject(model=built, spec=spec, example_input=_example(spec, example_input, model))
    given = [name for name, value in options.items() if value not in (None, {})]
    if given:
        raise ModelError(f"{', '.join(given)} shape a model that is built by name; this {type(model).__name__} exists")
    refuse_other(model, nn.Module, wanted="a model by name or a module")
    spec = spec_of(model)
    return Subject(model=model, spec=spec, example_input=_example(spec, example_input, type(model).__name__))


def _example(spec: ModelSpec, given: ExampleInput | None, name: str) -> ExampleInput:
    if given is not None:
        return given
    if spec.input_size is None:
        raise ModelError(
            f"nothing says what {name} takes as input; pass example_input= (a tensor of that shape), or --img-size on "
            "the command line"
        )
    return torch.empty(PROBE_BATCH, *spec.input_size, device="meta")


def is_checkpoint(source: object) -> bool:
    """Whether a source names an existing folder with a config.json."""
    return isinstance(source, str | Path) and (Path(source) / CONFIG_NAME).is_file()


def count_totals(model: nn.Module, trace: Trace) -> Totals:
    """Parameters, and operations per image of the recorded run, mixtures at their balanced load."""
    return total_of(model, count_modules(model, trace))


def total_of(model: nn.Module, modules: Iterable[ModuleCount]) -> Totals:
    """The sum over all modules of a model."""
    operations, uncounted = Counter[str](), Counter[str]()
    for counted in modules:
        operations.update(counted.operations)
        uncounted.update(counted.uncounted)
    return Totals(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        operations=dict(sorted(operations.items())),
        uncounted=dict(sorted(uncounted.items())),
    )
