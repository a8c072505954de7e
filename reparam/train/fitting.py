"""Fits a converted model to its dense original before training: layer by layer, in one pass over some images.

Each operator is fitted when the pass reaches it, so its input comes from layers that are fitted already, and its target
is what the dense layer at the same path made of the same images. All targets are held at once, so the number of images
is bounded by memory. Norms use the statistics of the batch meanwhile, and re-estimate their running ones afterwards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reparam.ops.base import Operator
from reparam.train.hooks import held

_BatchNorm = nn.modules.batchnorm._BatchNorm
#: Bytes that the outputs of all dense layers may take together.
TARGET_MEMORY = 2 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """How well layers follow the dense ones: by path, the mean correlation of their output channels; on `images`."""

    correlations: Mapping[str, float]
    images: int


@torch.no_grad()
def fit_model_(
    model: nn.Module,
    dense: nn.Module,
    images: Tensor,
    *,
    steps: int,
    layer_fitted: Callable[[str, float, int], None] = lambda path, correlation, layers: None,
) -> Fitted:
    """Fits every operator that can be, in the order of the run, and re-estimates the norms.

    Args:
        model: converted; it is left in eval mode.
        dense: the original, whose modules have the same paths; on the same device.
        images: (B, C, H, W); the first ones are taken where all would need more than `TARGET_MEMORY`.
        steps: of an optimiser in each layer.
        layer_fitted: called with path, correlation and the number of all layers, after each one.
    """
    operators = {path: m for path, m in model.named_modules() if isinstance(m, Operator) and _can_be_fitted(m)}
    originals = {path: module for path, module in dense.named_modules() if path in operators}
    if not originals:
        return Fitted(correlations={}, images=0)
    images = images[: _count_within_memory(dense, originals, images[:1])]
    targets = _outputs(dense, originals, images)
    found: dict[str, float] = {}

    def fit(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(operator: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(operator, Operator)
            if path in targets and path not in found and len(inputs) == 1:
                found[path] = operator.fit_(originals[path], inputs[0], targets.pop(path), steps=steps)
                layer_fitted(path, found[path], len(originals))

        return before

    model.eval()
    with held((m.register_forward_pre_hook(fit(path)) for path, m in operators.items())), batch_statistics(model):
        model(images)
    reestimate_norms_(model, [images])
    return Fitted(correlations=found, images=len(images))


@torch.no_grad()
def reestimate_norms_(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the running statistics of every batch norm to the mean over these batches; the model ends in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    with batch_statistics(model):
        for images in batches:
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Lets batch norms, and nothing else, run as in training."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    flags = [norm.training for norm in norms]
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm, flag in zip(norms, flags, strict=True):
            norm.training = flag


def _can_be_fitted(operator: Operator) -> bool:
    return type(operator).fit_ is not Operator.fit_


def _count_within_memory(dense: nn.Module, layers: Mapping[str, nn.Module], image: Tensor) -> int:
    """How many images' targets fit; at least two, of which a norm has statistics."""
    each = sum(output.nbytes for output in _outputs(dense, layers, image).values())
    return max(2, TARGET_MEMORY // max(1, each))


def _outputs(dense: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """What each layer gives in its first call; copies, for an activation in place may follow."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.setdefault(path, output.clone())

        return after

    with held(layer.register_forward_hook(keep(path)) for path, layer in layers.items()):
        dense.eval()(images)
    return outputs
