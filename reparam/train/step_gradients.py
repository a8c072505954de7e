"""Gradients that get a norm of their own before each step: AdderNet's adaptive learning rate.

    g <- eta * sqrt(k) * g / ||g||_2         k: the elements of the parameter

Done once gradients are accumulated, unscaled and reduced over processes, so that none of these changes the step. A
global clip leaves these parameters out: what it did to them would be undone, and they would shrink all others.
Source: AdderNet, arXiv:1912.13200.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reparam.ops.adder_layer import scaled_gradient
from reparam.ops.base import Operator


@dataclass(frozen=True, slots=True)
class StepGradients:
    """The trainable parameters of a model: those whose gradient the step scales, with their eta, and the others."""

    scaled: tuple[tuple[nn.Parameter, float], ...]
    others: tuple[nn.Parameter, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "StepGradients":
        """Asks every operator of the model."""
        etas = {
            id(module.get_parameter(name)): eta
            for module in model.modules()
            if isinstance(module, Operator)
            for name, eta in module.step_gradients().items()
        }
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return cls(
            scaled=tuple((p, etas[id(p)]) for p in trainable if id(p) in etas),
            others=tuple(p for p in trainable if id(p) not in etas),
        )

    @torch.no_grad()
    def scale_(self) -> None:
        """Gives the gradients their norm; gradients that are not finite stay so, for a scaler must see them."""
        for parameter, eta in self.scaled:
            gradient: Tensor | None = parameter.grad
            if gradient is not None:
                gradient.copy_(scaled_gradient(gradient, eta))


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of the gradients together, a scalar on their device; of slices, that of this process's own."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(
        [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    )
