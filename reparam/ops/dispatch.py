"""Three ways to send each token through its expert; they agree to rounding.

gather   sorts tokens by expert and runs each expert on its own rows. Segment sizes are read on the host, so it is for
         CPU, where that costs nothing.
grouped  sorts tokens and runs both experts' linear layers as one grouped product whose segment offsets stay on the
         device: no host synchronisation. Needs experts that are straight chains of linear layers and elementwise
         modules.
masked   runs both experts on every token and selects: twice the work, static shapes, for compile and export. While
         training with fixed-point activations, the shift expert's range then follows all tokens, not its own.

Shapes: tokens (T, C), index (T,) with values 0 and 1, result (T, O).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.ops.precision import compute_dtype

#: Before 2.15, torch knows the shape of a grouped product without running it in these types only.
_GROUPED = (torch.bfloat16, torch.float16)


def dispatch_masked(tokens: Tensor, index: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Runs both experts on all tokens and picks by `index`."""
    multiply, shift = (expert(tokens) for expert in experts)
    return torch.where(index.unsqueeze(1).bool(), shift, multiply)


def dispatch_gather(tokens: Tensor, index: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Runs each expert on its tokens only; an expert without tokens runs on none, so it still gets (zero) gradients."""
    order = torch.argsort(index, stable=True)
    first = int((index == 0).sum())
    rows = tokens[order]
    out = torch.cat([expert(part) for expert, part in zip(experts, (rows[:first], rows[first:]), strict=True)])
    return _unsort(out, order)


def dispatch_grouped(tokens: Tensor, index: Tensor, chains: Sequence[Sequence[nn.Module]]) -> Tensor:
    """Runs the experts' chains side by side: linear layers as grouped products, what lies between elementwise.

    Args:
        tokens: (T, C).
        index: (T,).
        chains: for each expert its modules in call order; those that are not linear layers are elementwise and hold no
            parameters, so the first expert's serve both.
    """
    order = torch.argsort(index, stable=True)
    ends = torch.stack([(index == 0).sum(), index.new_full((), len(index))]).to(torch.int32)
    rows = tokens[order]
    for multiply, shift in zip(*chains, strict=True):
        rows = _grouped_linear(rows, ends, order, index, (multiply, shift)) if _is_linear(multiply) else multiply(rows)
    return _unsort(rows, order)


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _grouped_linear(rows: Tensor, ends: Tensor, order: Tensor, index: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    inputs = _quantised_input(rows, order, index, layers).to(compute_dtype(rows))
    weight = torch.stack(_parameters(layers, "weight")).to(inputs.dtype)
    if inputs.dtype not in _GROUPED and (inputs.is_meta or torch.compiler.is_compiling()):
        out = dispatch_masked(inputs, index[order], [lambda x: x @ weight[0].T, lambda x: x @ weight[1].T])
    else:
        out = F.grouped_mm(inputs, weight.transpose(-2, -1), offs=ends)
    biases = _parameters(layers, "bias")
    return out + torch.stack(biases).to(out.dtype)[index[order]] if biases else out


def _parameters(layers: Sequence[nn.Module], name: str) -> list[Tensor]:
    found = [getattr(layer, name) for layer in layers]
    return [] if any(value is None for value in found) else found


def _quantised_input(rows: Tensor, order: Tensor, index: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    activation = getattr(layers[1], "activation", None)
    if activation is None or isinstance(activation, nn.Identity):
        return rows
    is_shifted = index[order].unsqueeze(1).bool()
    # The other expert's rows are zeroed first: an activation that observes its range must not see them.
    return torch.where(is_shifted, activation(torch.where(is_shifted, rows, 0.0)), rows)


def _unsort(rows: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(rows).index_copy(0, order, rows)
