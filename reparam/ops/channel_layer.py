"""Layers over the channels of a token: nn.Linear, and nn.Conv2d with a 1x1 kernel, which is one on (B, C, H, W).

Both shift as a ShiftLinear on the weight (O, I); a convolution's is wrapped so that it takes maps.
"""

from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.ops.plain_layer import is_plain
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_weight import ShiftOptions
from reparam.ops.site import Site


class ShiftPointwise(nn.Module):
    """Maps x (B, C, H, W) to (B, O, H, W) by a ShiftLinear over the channels."""

    def __init__(self, linear: ShiftLinear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, C, H, W) to (B, O, H, W)."""
        out: Tensor = self.linear(x.movedim(1, -1))
        return out.movedim(-1, 1)


def shift_linear_of(layer: nn.Module, site: Site, options: ShiftOptions) -> ShiftLinear:
    """Returns the shift layer on the weight (O, I) of a layer, sharing its storage."""
    if isinstance(layer, nn.Conv2d):
        layer = _as_linear(layer)
    return ShiftLinear.from_dense(layer, site, options)


def shift_in_place_of(layer: nn.Module, site: Site, options: ShiftOptions) -> nn.Module:
    """Returns the shift layer that takes what `layer` takes."""
    shift = shift_linear_of(layer, site, options)
    return ShiftPointwise(shift) if isinstance(layer, nn.Conv2d) else shift


def _as_linear(conv: nn.Conv2d) -> nn.Linear:
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=conv.weight.requires_grad)
    linear.bias = conv.bias  # type: ignore[assignment]  # torch's stub forgets that a layer may have none
    return linear.train(conv.training)


def refuse_layer(layer: nn.Module, site: Site, options: ShiftOptions) -> str | None:
    """Why a layer cannot shift, in words for the plan; `site.type` names it."""
    if not isinstance(layer, nn.Conv2d):
        return ShiftLinear.refuse(site, layer, options)
    if type(layer) is nn.Conv2d or is_plain(layer, "conv2d", (1, layer.in_channels, 1, 1)):
        return None
    return f"{site.type} is not torch.nn.Conv2d; its own forward would be lost"


def widths(layer: nn.Module) -> tuple[int, int]:
    """Channels in and out."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    width, outputs = layer.in_features, layer.out_features
    assert isinstance(width, int)
    assert isinstance(outputs, int)
    return width, outputs


def count_dense(layer: nn.Module, tokens: int) -> OpCount:
    """One multiply-accumulate for each weight and token, and one addition for each output's bias."""
    width, outputs = widths(layer)
    bias = tokens * outputs if layer.bias is not None else 0
    return OpCount.multiply_accumulate(tokens * width * outputs) + OpCount({("add", "f32"): bias})
