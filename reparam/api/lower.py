"""`reparam.lower`: an inference-only copy of a converted model, in the forms of one backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from torch import Tensor, nn

from reparam.checkpoint.load import load
from reparam.errors import BackendError, OptionError
from reparam.graph.provenance import detach, unwrapped
from reparam.lowering.base import BACKENDS, Experts, LoweredLayer, LoweringSettings, lowered_path
from reparam.lowering.lower import lowered_copy
from reparam.lowering.ranges import input_ranges
from reparam.models.given import refuse_other
from reparam.trace.probe import ExampleInput, as_arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """A lowered model, the backend that it is for, and what became of each module that has a form of its own."""

    model: nn.Module
    backend: str
    layers: tuple[LoweredLayer, ...]


def lower(
    model: nn.Module | str | Path,
    backend: str = "int8",
    *,
    calibration: ExampleInput | None = None,
    experts: Experts = "int8",
) -> Lowering:
    """Returns a copy of a converted model for inference only, as fast as a backend can make it.

    The copy is in eval mode, takes no gradient, and cannot be saved: save the converted model and lower it again. It
    may be given to `torch.compile`, which fuses what stands between the products.

    Args:
        model: a converted model, or the folder of one.
        backend: "int8" (CPU; integer products), "bf16" (shift weights are exact in it), "cuda" (bf16 on a GPU, with
            shift weights held in 4 or 8 bits), "cuda-fp8" (shift layers in float8 there), or "float32" (the same
            values, weights rounded once).
        calibration: real inputs. Inputs of integer and float8 products then have one fixed step for each layer, a power
            of two that covers what these inputs reach; otherwise each token, or each image of a convolution, has a step
            of its own, found as it comes. Layers with `activation_bits` keep their step either way.
        experts: of "int8": whether a mixture's multiply experts have int8 weights, or stay in float32.

    Raises:
        BackendError: an unknown backend, one that is not for the model's device, a model that is lowered already or not
            in float32, layers that it cannot take, a calibration that the model does not take, or values of it that are
            not finite, with their paths.
        OptionError: `experts` or `calibration` of another kind, or for a backend that they change nothing in.
        ModelError: `model` of another kind.
        CheckpointError: a folder that is not an intact checkpoint.
    """
    refuse_other(model, (nn.Module, str, Path), wanted="a converted model or the folder of one")
    if experts not in get_args(Experts):
        raise OptionError(f'experts "{experts}": wanted {" or ".join(get_args(Experts))}')
    if not isinstance(calibration, Tensor | tuple | None):
        raise OptionError(
            f"calibration: wanted one batch of inputs, or a tuple of all arguments of the forward, got a "
            f"{type(calibration).__name__}"
        )
    if calibration is not None:
        _want_reader("calibration", backend, [name for name, other in BACKENDS if other.reads_ranges])
    if experts != "int8":
        _want_reader("experts", backend, [name for name, other in BACKENDS if other.reads_experts])
    source = load(model) if isinstance(model, str | Path) else unwrapped(model)
    if (path := lowered_path(source)) is not None:
        raise BackendError(
            f"the model is lowered already ({path or 'itself'} is); lower the converted model it is from"
        )
    ranges = {} if calibration is None else input_ranges(source, as_arguments(calibration))
    lowered, layers = lowered_copy(source, backend, LoweringSettings(ranges=ranges, experts=experts))
    detach(lowered)
    return Lowering(model=lowered, backend=backend, layers=layers)


def _want_reader(option: str, backend: str, able: Sequence[str]) -> None:
    if BACKENDS.get(backend).name not in able:
        raise OptionError(f'{option} changes nothing in backend "{backend}"; it is for {" and ".join(able)}')
