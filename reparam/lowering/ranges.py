"""The largest input magnitude that each layer meets in one run: what a static activation scale must cover."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import BackendError, first_line
from reparam.modes import evaluating
from reparam.ops.adder_layer import AdderLayer
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.shift_layer import ShiftLayer

_OBSERVED = (ShiftLayer, AdderLayer, nn.Linear, nn.Conv2d)


@torch.no_grad()
def input_ranges(model: nn.Module, inputs: Sequence[Any]) -> dict[nn.Module, Tensor]:
    """Runs `model` in eval mode on real inputs; layers that meet no value but 0 are left out.

    Args:
        model: its training flags are put back.
        inputs: arguments of its forward.

    Raises:
        BackendError: the model does not take these inputs, or a layer meets values that are not finite, which no step
            covers.
    """
    found: dict[nn.Module, Tensor] = {}

    def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        layer = module.multiply if isinstance(module, RoutedLayer) else module
        if x.numel():
            largest = x.detach().abs().amax().float()
            found[layer] = torch.maximum(found[layer], largest) if layer in found else largest

    hooks = [m.register_forward_pre_hook(observe, with_kwargs=True) for m in model.modules() if _is_observed(m)]
    try:
        with evaluating(model), _gathering(model):
            model(*inputs)
    except Exception as error:  # whatever a forward raises for what it does not take
        raise BackendError(f"calibration: the model does not run on these inputs: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    paths = {module: path for path, module in model.named_modules()}
    for module, largest in found.items():
        if not largest.isfinite():
            raise BackendError(
                f"{paths[module] or 'the model'}: meets values that are not finite in the calibration, which no step "
                "covers; look at the calibration's inputs, or at the weights before this layer"
            )
    return {module: largest for module, largest in found.items() if largest}


def _is_observed(module: nn.Module) -> bool:
    # A routed 1x1 convolution multiplies by its weight and is never called; all its tokens pass the module around it.
    return isinstance(module, _OBSERVED) or (isinstance(module, RoutedLayer) and isinstance(module.multiply, nn.Conv2d))


@contextmanager
def _gathering(model: nn.Module) -> Iterator[None]:
    """While open, mixtures call the layers of each expert, on that expert's tokens alone."""
    mixtures = [module for module in model.modules() if isinstance(module, MoeMlp | RoutedLayer)]
    options = [mixture.options for mixture in mixtures]
    for mixture in mixtures:
        mixture.options = mixture.options.model_copy(update={"dispatch": "gather"})
    try:
        yield
    finally:
        for mixture, own in zip(mixtures, options, strict=True):
            mixture.options = own
