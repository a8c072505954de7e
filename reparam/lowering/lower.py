"""Lowering: each operator of a copied model is replaced by its inference-only form."""

import copy

import torch
from torch import nn

from reparam.errors import BackendError
from reparam.lowering.base import BACKENDS, Backend, LoweredLayer, LoweringSettings
from reparam.modes import evaluating
from reparam.ops.base import Operator
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer


def lowered_copy(
    model: nn.Module, backend: str, settings: LoweringSettings
) -> tuple[nn.Module, tuple[LoweredLayer, ...]]:
    """Returns a copy of `model` in the forms of a backend, in eval mode and without gradients, and what became of what.

    Args:
        model: a converted model; a dense one has nothing to lower, but what the backend does to whole models.
        backend: name of one.
        settings: its `ranges` are keyed by modules of `model`.

    Raises:
        BackendError: an unknown backend, one that does not run where the model is, a model that is not in float32, or
            operators that the backend cannot take, all at once.
    """
    chosen = BACKENDS.get(backend)(settings)
    _want_device(model, chosen)
    _want_float32(model)
    with evaluating(model):  # a layer that rounds stochastically does so in training mode only
        forms, layers = _forms(model, chosen)
    # What is replaced is not copied: deepcopy finds the form where it would have begun with the module.
    lowered = copy.deepcopy(model, forms)
    lowered.eval().requires_grad_(False)
    chosen.finish_(lowered)
    return lowered, layers


def _forms(model: nn.Module, chosen: Backend) -> tuple[dict[int, nn.Module], tuple[LoweredLayer, ...]]:
    forms: dict[int, nn.Module] = {}
    layers: list[LoweredLayer] = []
    faults: list[str] = []

    def visit(path: str, module: nn.Module) -> None:
        try:
            found = chosen.form(module)
        except BackendError as error:
            faults.append(f"{path or 'the model'}: {error}")
            return
        if found is not None:
            forms[id(module)] = found[0]
            layers.append(LoweredLayer(path, type(module).__name__, found[1]))
            return
        known = len(forms)
        for name, child in module.named_children():
            if id(child) not in forms:
                visit(f"{path}.{name}" if path else name, child)
        if isinstance(module, Operator) and len(forms) == known:
            layers.append(LoweredLayer(path, type(module).__name__, "as it was"))
        elif isinstance(module, RoutedLayer) or (isinstance(module, MoeMlp) and not module.form.mixes_tokens):
            form = "one expert after the other, the multiply expert as it was"
            layers.append(LoweredLayer(path, type(module).__name__, form))

    with torch.no_grad():
        visit("", model)
    if faults:
        raise BackendError("\n".join(faults))
    return forms, tuple(layers)


def _want_device(model: nn.Module, chosen: Backend) -> None:
    place = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if reason := chosen.refuse(place):
        able = [name for name, other in BACKENDS if not other(LoweringSettings()).refuse(place)]
        raise BackendError(f'backend "{chosen.name}" {reason}; there, these do: {", ".join(able) or "none"}')


def _want_float32(model: nn.Module) -> None:
    for path, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise BackendError(
                f"{path}: wanted a model in float32, got {parameter.dtype}; lower model.float(), and the backend "
                "brings it into its own types"
            )
