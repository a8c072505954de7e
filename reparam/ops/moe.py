"""moe_mlp: an MLP becomes a mixture of a multiply expert and a shift expert; each token takes one.

    y = gate * E_i(x),   i = router(x),   E_0 = the pretrained MLP, untouched,   E_1 = its copy with shift_linear layers

The straight-through gate is 1 in value, so a token keeps the pretrained scale, and differentiable, so the router
learns. An MLP that mixes tokens between its layers (a depthwise convolution, a normalisation over the image or the
batch) cannot be run on some tokens alone: there each layer becomes such a mixture with a router of its own, and what
stands between stays shared.

Source: ShiftAddViT, arXiv:2306.06446. Repaired: the router gets a gradient (released: a constant gate), the output is
combined linearly (released: log of a sum of exponentials), and no token's path depends on noise in eval.
Shapes: x (..., C) or (B, C, H, W), y likewise with O channels.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.ops.base import Example, Operator, operator
from reparam.ops.channel_layer import ShiftPointwise, refuse_layer, shift_in_place_of, widths
from reparam.ops.experts import (
    GROUPED_ALIGNMENT,
    Expert,
    count_experts,
    run_experts,
    tokens_in,
    way_of,
    widths_are_aligned,
)
from reparam.ops.moe_examples import moe_examples
from reparam.ops.moe_options import MoeMlpOptions
from reparam.ops.routed_layer import RoutedLayer, route_layers
from reparam.ops.routing import Router, Routing
from reparam.ops.shift import ShiftLinear
from reparam.ops.site import MlpForm, Site


@operator("moe_mlp", kind="mlp", source="arXiv:2306.06446")
class MoeMlp(Operator):
    """mlp(x) -> gate * (mlp(x) or shifted_mlp(x)), chosen per token.

    Before: the MLP's multiplications for every token. After: the router's for every token, the MLP's for the tokens
    that take the multiply expert, shifts for the others. State: `router.weight` (2, C), and `router.bias` (2,) where
    the options ask for it; `multiply.*` (the pretrained MLP), `shift.*` (its shifted copy). Where the MLP mixes tokens:
    `body.*`, the pretrained MLP with a `RoutedLayer` in place of each of its layers. `place` is the path and number of
    its site.
    """

    Options = MoeMlpOptions

    def __init__(self, mlp: nn.Module, site: Site, options: MoeMlpOptions) -> None:
        super().__init__()
        assert site.mlp is not None
        self.place, self.form, self.options = (site.path, site.number), site.mlp, options
        if self.form.mixes_tokens:
            self.body = route_layers(mlp, self.form, site, options)
        else:
            width, reference = widths(mlp.get_submodule(self.form.linears[0]))[0], next(mlp.parameters())
            self.router = options.make_router(width, like=reference)
            self.multiply = mlp
            self.shift = _shifted(mlp, self.form, site, options)
        self.train(mlp.training)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Maps x (..., C) to (..., O), or (B, C, H, W) to (B, O, H, W); further arguments go to the MLP as they are."""
        if self.form.mixes_tokens:
            mixed: Tensor = self.body(x, *args, **kwargs)
            return mixed
        rows = x if self.form.layout == "channels_last" else x.movedim(1, -1)
        tokens = rows.reshape(-1, rows.shape[-1])
        routing: Routing = self.router(tokens)
        out = self._dispatch(tokens, routing.expert, x.dim(), args, kwargs) * routing.gate
        out = out.reshape(*rows.shape[:-1], -1)
        return out if rows is x else out.movedim(-1, 1).contiguous()

    def set_latency_(self, latency: tuple[float, float]) -> None:
        """Balances the load by other latencies of the two experts, in every router of this MLP."""
        for module in self.modules():
            if isinstance(module, MoeMlp | RoutedLayer):
                module.options = module.options.model_copy(update={"latency": latency})
            elif isinstance(module, Router):
                module.latency = latency

    def _dispatch(
        self,
        tokens: Tensor,
        index: Tensor,
        rank: int = 2,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        chains = (self._chain(self.multiply), self._chain(self.shift))
        return run_experts(tokens, index, self.experts(rank, args, kwargs), way=self._way(tokens), chains=chains)

    def experts(
        self, rank: int = 2, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Expert, Expert]:
        """The multiply and the shift expert, each mapping tokens (T, C) to (T, O); of an MLP that mixes no tokens.

        Args:
            rank: axes of the input that the tokens come from.
            args: further arguments of its forward.
            kwargs: further keyword arguments.
        """
        multiply, shift = (self._expert(expert, rank, args, kwargs or {}) for expert in (self.multiply, self.shift))
        return multiply, shift

    def expert_layers(self) -> list[tuple[nn.Module, ShiftLinear]]:
        """The layers over the channels, each as the multiply and as the shift expert have it."""
        return [(self.multiply.get_submodule(name), self._shift_layer(name)) for name in self.form.linears]

    def _expert(self, expert: nn.Module, rank: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Expert:
        """The expert on tokens (T, C); a forward that is no chain may count axes, so it gets as many as the input."""
        if self.form.chain:
            return expert
        ones = (1,) * (rank - 2)

        def run(tokens: Tensor) -> Tensor:
            rows, width = tokens.shape
            shape = (rows, *ones, width) if self.form.layout == "channels_last" else (rows, width, *ones)
            out: Tensor = expert(tokens.reshape(shape), *args, **kwargs)
            return out.flatten(1)

        return run

    def _way(self, tokens: Tensor) -> str:
        layers = [self.multiply.get_submodule(name) for name in self.form.linears]
        return way_of(tokens, self.options, can_group=bool(self.form.chain) and widths_are_aligned(layers))

    def _chain(self, expert: nn.Module) -> list[nn.Module]:
        return [expert.get_submodule(name) for name in self.form.chain]

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: MoeMlpOptions) -> str | None:
        """Takes an MLP whose layers over the channels can all be shift layers."""
        assert site.mlp is not None
        if site.shared_with:
            return f'it shares parameters with "{site.shared_with[0]}"'
        layers = {name: dense.get_submodule(name) for name in site.mlp.linears}
        for name, layer in layers.items():
            reason = refuse_layer(layer, site.model_copy(update={"type": name}), options.shift)
            if reason:
                return f'its layer "{name}" cannot shift: {reason}'
        return _refuse_grouped(site.mlp, list(layers.values())) if options.dispatch == "grouped" else None

    @classmethod
    def remark(cls, site: Site, options: MoeMlpOptions) -> str | None:
        """Says at which load the plan counts the operations, and where there is more than one router."""
        assert site.mlp is not None
        load = f"counted with {options.balanced_share:.0%} of tokens multiplied: modelled"
        return f"one router for each of its {len(site.mlp.linears)} layers; {load}" if site.mlp.mixes_tokens else load

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: MoeMlpOptions) -> "MoeMlp":
        """Keeps the pretrained MLP as the multiply expert and copies it into the shift expert."""
        return cls(dense, site, options)

    def op_count(self, *input_shapes: tuple[int, ...], mult_share: float | None = None) -> OpCount:
        """Counts at a measured share of tokens for the multiply expert, or else at the balanced load.

        At the balanced load the share of an expert is inversely proportional to its latency. The router's two products
        and one comparison are included, and gathering and scattering the tokens; activations inside the experts are
        not, nor what stands between routed layers.
        """
        if self.form.mixes_tokens:
            return self._count_routed(input_shapes[0], mult_share)
        pairs = self.expert_layers()
        width = widths(pairs[0][0])[0]
        share = self.options.balanced_share if mult_share is None else mult_share
        return count_experts(pairs, tokens_in(input_shapes[0], width), router=self.router, share=share)

    def declares(self, path: str) -> bool:
        """All but what stands between the layers, such as activations.

        Each token meets it in one of the experts, so that of the multiply expert is counted, which runs on all tokens
        when it is recorded, and its copy in the shift expert is not.
        """
        layers = [f"multiply.{name}" for name in self.form.linears]
        is_multiply = path == "multiply" or path.startswith("multiply.")
        return not is_multiply or any(path == layer or path.startswith(f"{layer}.") for layer in layers)

    def _count_routed(self, shape: tuple[int, ...], mult_share: float | None) -> OpCount:
        layers = [self.body.get_submodule(name) for name in self.form.linears]
        count, tokens = OpCount(), 0
        for layer in layers:
            assert isinstance(layer, RoutedLayer)
            width = widths(layer.multiply)[0]
            tokens = tokens or tokens_in(shape, width)
            count += layer.op_count((tokens, width), mult_share=mult_share)
        return count

    def _shift_layer(self, name: str) -> ShiftLinear:
        layer = self.shift.get_submodule(name)
        linear = layer.linear if isinstance(layer, ShiftPointwise) else layer
        assert isinstance(linear, ShiftLinear)
        return linear

    @classmethod
    def examples(cls) -> list[Example]:
        """Shift experts, gates, dispatches and kinds of MLP; refused: odd widths, shared parameters, a subclass."""
        return moe_examples()


def _shifted(mlp: nn.Module, form: MlpForm, site: Site, options: MoeMlpOptions) -> nn.Module:
    shift = copy.deepcopy(mlp)
    for name in form.linears:
        shift.set_submodule(name, shift_in_place_of(shift.get_submodule(name), site, options.shift))
    return shift


def _refuse_grouped(form: MlpForm, layers: list[nn.Module]) -> str | None:
    if not widths_are_aligned(layers):
        return f'dispatch = "grouped" needs layer widths that are multiples of {GROUPED_ALIGNMENT}; use "auto"'
    is_routed = form.mixes_tokens and all(isinstance(layer, nn.Linear) for layer in layers)
    return (
        None if form.chain or is_routed else 'dispatch = "grouped" needs a straight chain of linear layers; use "auto"'
    )
