"""One layer of an MLP as a mixture with a router of its own, for MLPs that mix tokens between their layers.

    y = gate * E_i(x),   i = router(x),   E_0 = the pretrained layer,   E_1 = its ShiftLinear

Source: ShiftAddViT, arXiv:2306.06446, on PVTv2, whose MLPs hold a depthwise convolution.
Shapes: x (..., C) for a linear layer, (B, C, H, W) for a 1x1 convolution; y likewise with O channels.
"""

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from reparam.counts import OpCount
from reparam.ops.channel_layer import shift_linear_of, widths
from reparam.ops.experts import Expert, count_experts, run_experts, tokens_in, way_of, widths_are_aligned
from reparam.ops.moe_options import MoeMlpOptions
from reparam.ops.routing import Routing
from reparam.ops.shift import ShiftLinear
from reparam.ops.site import MlpForm, Site


class RoutedLayer(nn.Module):
    """Sends each token through a layer or through its shift layer. State: `router`, `multiply`, `shift`."""

    def __init__(self, layer: nn.Module, site: Site, options: MoeMlpOptions) -> None:
        super().__init__()
        self.options = options
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.router = options.make_router(widths(layer)[0], like=weight)
        self.multiply = layer
        self.shift = shift_linear_of(copy.deepcopy(layer), site, options.shift)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., C) to (..., O), or (B, C, H, W) to (B, O, H, W)."""
        is_map = isinstance(self.multiply, nn.Conv2d)
        rows = x.movedim(1, -1) if is_map else x
        tokens = rows.reshape(-1, rows.shape[-1])
        routing: Routing = self.router(tokens)
        out = self._run(tokens, routing.expert) * routing.gate
        out = out.reshape(*rows.shape[:-1], -1)
        return out.movedim(-1, 1).contiguous() if is_map else out

    def _run(self, tokens: Tensor, index: Tensor) -> Tensor:
        can_group = isinstance(self.multiply, nn.Linear) and widths_are_aligned([self.multiply])
        way = way_of(tokens, self.options, can_group=can_group)
        return run_experts(tokens, index, self.experts(), way=way, chains=([self.multiply], [self.shift]))

    def experts(self) -> tuple[Expert, Expert]:
        """The multiply and the shift expert, each mapping tokens (T, C) to (T, O)."""
        return self.multiply if isinstance(self.multiply, nn.Linear) else self._multiply_pointwise, self.shift

    def expert_layers(self) -> list[tuple[nn.Module, ShiftLinear]]:
        """The one layer over the channels, as the multiply and as the shift expert have it."""
        return [(self.multiply, self.shift)]

    def _multiply_pointwise(self, tokens: Tensor) -> Tensor:
        layer = self.multiply
        assert isinstance(layer, nn.Conv2d)
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)

    def op_count(self, shape: tuple[int, ...], *, mult_share: float | None = None) -> OpCount:
        """Counts one call on an input of this shape at a measured share of tokens, or else at the balanced load."""
        width = widths(self.multiply)[0]
        share = self.options.balanced_share if mult_share is None else mult_share
        return count_experts(self.expert_layers(), tokens_in(shape, width), router=self.router, share=share)


def route_layers(mlp: nn.Module, form: MlpForm, site: Site, options: MoeMlpOptions) -> nn.Module:
    """Returns a copy of an MLP whose layers are routed, one by one; it shares its tensors with `mlp`, which stays."""
    shared = {id(tensor): tensor for tensor in (*mlp.parameters(), *mlp.buffers())}
    body = copy.deepcopy(mlp, shared)
    layers = [body.get_submodule(name) for name in form.linears]
    routed = {id(layer): RoutedLayer(layer, site, options) for layer in layers}
    for name, module in list(body.named_modules(remove_duplicate=False)):
        if id(module) in routed:
            body.set_submodule(name, routed[id(module)])
    return body
