"""The largest input magnitude that each layer meets in one run: what a static activation scale must cover."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import BackendError, first_line
from reparam.modes import evaluating
from reparam.ops.adder_layer import AdderLayer
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

    def observe(module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if x.numel():
            largest = x.detach().abs().amax().float()
            found[module] = torch.maximum(found[module], largest) if module in found else largest

    hooks = [m.register_forward_pre_hook(observe) for m in model.modules() if isinstance(m, _OBSERVED)]
    try:
        with evaluating(model):
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
