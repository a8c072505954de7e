"""Bias correction without data: batch norms know their outputs, and so what rounding adds to the layers after them.

A batch norm's output has mean b and standard deviation |w|, b and w being its bias and weight. So the dense model is
run on normal draws of these moments in the place of each norm's output, and whatever stands between a norm and the next
layer (activations, residual sums, pooling, padding) acts on them as it does on data. The mean of (W' - W) x comes off
each layer's bias; where it has none, the batch norm behind it expects that mean from then on, and the new variance.
Layers that no batch norm stands before are left alone: they are given NaN.

Source: Nagel et al., arXiv:1906.04721 (DFQ), for a ReLU in closed form; the variance is ours.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from reparam.models.inputs import input_specs, meta_inputs, with_batch
from reparam.modes import evaluating
from reparam.ops.shift_layer import ShiftLayer
from reparam.trace.probe import ExampleInput

#: Images' worth of draws.
_BATCH = 32


class _Added(NamedTuple):
    """What rounding did to the output of the layer at `path`: added to each channel's mean, its variance multiplied.

    The output is kept, so that its identity stays its own.
    """

    path: str
    output: Tensor
    mean: Tensor
    variance: Tensor


@torch.no_grad()
def correct_biases_(
    model: nn.Module,
    dense: nn.Module,
    example_input: ExampleInput,
    *,
    chosen: Callable[[str], bool] = lambda path: True,
) -> tuple[str, ...]:
    """Corrects the shift layers with `bias_correction`, and returns the paths of those whose input norms know.

    Args:
        model: converted.
        dense: the original, whose layers have the same paths; on the same device. It is left as it was.
        example_input: what the models take; only shapes and dtypes matter.
        chosen: by path, which of these layers.
    """
    wanted = {path: layer for path, layer in model.named_modules() if _is_wanted(layer) and chosen(path)}
    if not wanted:
        return ()
    run = _Draws(model, dense)
    handles = [
        module.register_forward_hook(run.after(path, wanted[path]))
        for path, module in dense.named_modules()
        if path in wanted and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        with evaluating(model, dense), run:
            dense(*_unknown(example_input, next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(run.corrected)


def _is_wanted(layer: nn.Module) -> bool:
    return isinstance(layer, ShiftLayer) and layer.options.bias_correction


def _unknown(example_input: ExampleInput, device: torch.device) -> Iterator[Any]:
    """A batch of inputs of which nothing is known: NaN, or 0 where they are whole numbers."""
    for x in meta_inputs(with_batch(input_specs(example_input), _BATCH)):
        if isinstance(x, Tensor):
            yield torch.full_like(x, torch.nan if x.is_floating_point() else 0, device=device)
        else:
            yield x


class _Draws(TorchFunctionMode):
    """Answers for batch norms while the dense model runs, and corrects the converted one on the way.

    `corrected` are the paths of the layers that were.
    """

    def __init__(self, model: nn.Module, dense: nn.Module) -> None:
        super().__init__()
        self.corrected: list[str] = []
        self._model = model
        self._names = {id(buffer): name for name, buffer in dense.named_buffers()}
        self._random = torch.Generator().manual_seed(0)
        self._waiting: dict[int, _Added] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return self._norm(*args, **(kwargs or {})) if func is F.batch_norm else result

    def _norm(
        self, x: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, *_: Any, **__: Any,
    ) -> Tensor:  # fmt: skip
        added = self._waiting.pop(id(x), None)
        if added is not None and mean is not None and variance is not None:
            self._expect(added, self._names[id(mean)], self._names[id(variance)])
        draws, shape = torch.randn(x.shape, generator=self._random).to(x), (-1, *[1] * (x.ndim - 2))
        draws = draws if weight is None else draws * weight.view(shape)
        return draws if bias is None else draws + bias.view(shape)

    def _expect(self, added: _Added, mean: str, variance: str) -> None:
        """Lets a converted batch norm know of what its input has become."""
        self._model.get_buffer(mean).add_(added.mean)
        self._model.get_buffer(variance).mul_(added.variance)
        self.corrected.append(added.path)

    def after(self, path: str, layer: ShiftLayer) -> Any:
        """A hook for the dense layer at `path`."""

        def hook(dense: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            channel = output.ndim - 1 if isinstance(dense, nn.Linear) else 1
            axes = [axis for axis in range(output.ndim) if axis != channel]
            rounded: Tensor = layer(inputs[0])
            mean, variance = (rounded - output).mean(axes), rounded.var(axes) / output.var(axes)
            if not mean.isfinite().all():
                return
            if isinstance(layer.bias, Tensor):
                layer.bias.sub_(mean)
                self.corrected.append(path)
                return
            ratio = torch.where(variance.isfinite(), variance, 1.0)
            self._waiting[id(output)] = _Added(path, output, mean, ratio)

        return hook
