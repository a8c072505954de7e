"""moe_mlp: an MLP becomes a mixture of a multiply expert and a shift expert; each token takes one.

    y = gate * E_i(x),   i = router(x),   E_0 = the pretrained MLP, untouched,   E_1 = its copy with shift_linear layers

The straight-through gate is 1 in value, so a token keeps the pretrained scale, and differentiable, so the router
learns.

Source: ShiftAddViT, arXiv:2306.06446. Repaired: the router gets a gradient (released: a constant gate), the output is
combined linearly (released: log of a sum of exponentials), and no token's path depends on noise in eval.
Shapes: x (..., C), y (..., O).
"""

import copy
import math
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from reparam.counts import OpCount
from reparam.ops.base import Example, Operator, OperatorOptions, operator
from reparam.ops.dispatch import dispatch_gather, dispatch_grouped, dispatch_masked
from reparam.ops.precision import compute_dtype
from reparam.ops.routing import Gate, Router, Routing
from reparam.ops.shift import ShiftLinear, ShiftLinearOptions
from reparam.ops.site import MlpForm, Site

#: Grouped products want rows that start on 16 bytes; 8 elements are enough for every floating type.
_GROUPED_ALIGNMENT = 8


class MoeMlpOptions(OperatorOptions):
    """Options of `moe_mlp`; the defaults are ours except `latency`, which is the released constant until measured."""

    shift: ShiftLinearOptions = Field(ShiftLinearOptions(), description="Options of the shift expert's layers.")
    latency: tuple[float, float] = Field((0.6, 0.4), description="Time of the multiply and the shift expert, any unit.")
    gate: Gate = Field("straight_through", description="p / sg(p), p, or the released constant 1.")
    router_init: Literal["zero", "normal"] = Field("zero", description="Zero starts with every token multiplied.")
    router_noise: float = Field(0.5, ge=0, description="Standard deviation on the logits while training.")
    dispatch: Literal["auto", "gather", "grouped", "masked"] = Field("auto", description="How tokens reach experts.")

    @field_validator("latency")
    @classmethod
    def _is_positive(cls, latency: tuple[float, float]) -> tuple[float, float]:
        if min(latency) <= 0:
            raise ValueError("both latencies must be above 0")
        return latency

    @property
    def balanced_share(self) -> float:
        """Share of tokens for the multiply expert at which both experts finish together."""
        multiply, shift = self.latency
        return shift / (multiply + shift)


@operator("moe_mlp", kind="mlp", source="arXiv:2306.06446")
class MoeMlp(Operator):
    """mlp(x) -> gate * (mlp(x) or shifted_mlp(x)), chosen per token.

    Before: the MLP's multiplications for every token. After: the router's for every token, the MLP's for the tokens
    that take the multiply expert, shifts for the others. State: `router.weight` (2, C), `multiply.*` (the pretrained
    MLP), `shift.*` (its shifted copy).
    """

    Options = MoeMlpOptions
    no_decay = ("router.weight",)

    def __init__(
        self, multiply: nn.Module, shift: nn.Module, form: MlpForm, width: int, options: MoeMlpOptions
    ) -> None:
        super().__init__()
        self.form, self.options = form, options
        self.router = Router(
            width,
            latency=options.latency,
            gate=options.gate,
            init=options.router_init,
            noise=options.router_noise,
        )
        self.multiply = multiply
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., C) to (..., O)."""
        tokens = x.reshape(-1, x.shape[-1])
        routing: Routing = self.router(tokens)
        out = self._dispatch(tokens, routing.expert) * routing.gate
        return out.reshape(*x.shape[:-1], -1)

    def _dispatch(self, tokens: Tensor, index: Tensor) -> Tensor:
        experts = (self.multiply, self.shift)
        way = self._way(tokens)
        if way == "gather":
            return dispatch_gather(tokens, index, experts)
        if way == "grouped":
            return dispatch_grouped(tokens, index, [self._chain(expert) for expert in experts])
        return dispatch_masked(tokens, index, experts)

    def _way(self, tokens: Tensor) -> str:
        if self.options.dispatch != "auto":
            return self.options.dispatch
        if torch.compiler.is_compiling() or tokens.device.type == "meta":
            return "masked"
        if tokens.device.type == "cpu":
            return "gather"
        # Other types fall back to a loop that reads the offsets on the host, which is what grouping is to avoid.
        is_aligned = self._widths_are_aligned(self.multiply, self.form.linears)
        return "grouped" if is_aligned and compute_dtype(tokens) == torch.bfloat16 else "masked"

    @staticmethod
    def _widths_are_aligned(expert: nn.Module, linears: tuple[str, ...]) -> bool:
        layers = [expert.get_submodule(name) for name in linears]
        widths = [getattr(layer, side) for layer in layers for side in ("in_features", "out_features")]
        return all(width % _GROUPED_ALIGNMENT == 0 for width in widths)

    def _chain(self, expert: nn.Module) -> list[nn.Module]:
        return [expert.get_submodule(name) for name in self.form.chain]

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: MoeMlpOptions) -> str | None:
        """Takes an MLP whose linear layers can all be shift layers and that maps tokens, one by one."""
        assert site.mlp is not None
        if site.shared_with:
            return f'it shares parameters with "{site.shared_with[0]}"'
        for name in site.mlp.linears:
            reason = ShiftLinear.refuse(
                site.model_copy(update={"type": name}), dense.get_submodule(name), options.shift
            )
            if reason:
                return f'its layer "{name}" cannot shift: {reason}'
        if options.dispatch == "grouped" and not cls._widths_are_aligned(dense, site.mlp.linears):
            return f'dispatch = "grouped" needs layer widths that are multiples of {_GROUPED_ALIGNMENT}; use "auto"'
        return None

    @classmethod
    def remark(cls, site: Site, options: MoeMlpOptions) -> str | None:
        """Says at which load the plan counts the operations."""
        return f"counted with {options.balanced_share:.0%} of tokens multiplied: modelled"

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: MoeMlpOptions) -> "MoeMlp":
        """Keeps the pretrained MLP as the multiply expert and copies it into the shift expert."""
        assert site.mlp is not None
        shift = copy.deepcopy(dense)
        for name in site.mlp.linears:
            linear = shift.get_submodule(name)
            shift.set_submodule(name, ShiftLinear.from_dense(linear, site, options.shift))
        width = dense.get_submodule(site.mlp.linears[0]).in_features
        assert isinstance(width, int)
        reference = next(dense.parameters())
        mixture = cls(dense, shift, site.mlp, width, options).train(dense.training)
        mixture.router.to(device=reference.device, dtype=reference.dtype)
        return mixture

    def op_count(self, *input_shapes: tuple[int, ...], mult_share: float | None = None) -> OpCount:
        """Counts at a measured share of tokens for the multiply expert, or else at the balanced load.

        At the balanced load the share of an expert is inversely proportional to its latency. The router's two products
        and one comparison are included; activations inside the experts are not.
        """
        tokens = math.prod(input_shapes[0][:-1])
        multiplied = round(tokens * (self.options.balanced_share if mult_share is None else mult_share))
        count = OpCount.multiply_accumulate(tokens * 2 * self.router.weight.shape[1])
        count += OpCount({("cmp", "f32"): tokens})
        for name in self.form.linears:
            dense, shifted = self.multiply.get_submodule(name), self.shift.get_submodule(name)
            assert isinstance(dense, nn.Linear)
            assert isinstance(shifted, ShiftLinear)
            bias = multiplied * dense.out_features if dense.bias is not None else 0
            count += OpCount.multiply_accumulate(multiplied * dense.weight.numel()) + OpCount({("add", "f32"): bias})
            count += shifted.op_count((tokens - multiplied, dense.in_features))
        return count

    @classmethod
    def examples(cls) -> list[Example]:
        """Shift experts, gates and dispatches; refused: odd widths, shared parameters, a linear subclass."""

        class Doubled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        def example(name: str, refusal: str | None = None, **fields: Any) -> Example:
            first, hidden = fields.pop("first", nn.Linear), fields.pop("hidden", 16)
            site = Site(
                path="mlp", kind="mlp", type="torch.nn.modules.container.Sequential", input_shape=(2, 5, 8),
                output_shape=(2, 5, 8), shared_with=fields.pop("shared_with", ()),
                mlp=MlpForm(chain=("0", "1", "2"), linears=("0", "2")),
            )  # fmt: skip
            return Example(
                name=name,
                site=site,
                dense=lambda: nn.Sequential(first(8, hidden), nn.GELU(), nn.Linear(hidden, 8)),
                inputs=lambda: (torch.randn(2, 5, 8),),
                options=MoeMlpOptions(**fields),
                refusal=refusal,
            )

        return [
            example("default"),
            example("ps", shift=ShiftLinearOptions(parameterisation="ps")),
            example("probability-gate", gate="probability", router_init="normal"),
            example("released-gate", gate="one", router_init="normal", router_noise=0.0),
            example("grouped", dispatch="grouped", router_init="normal"),
            example("fixed-point", shift=ShiftLinearOptions(activation_bits=8)),
            example("masked", dispatch="masked", router_init="normal"),
            example(
                "grouped-odd-width",
                dispatch="grouped",
                hidden=12,
                refusal='dispatch = "grouped" needs layer widths that are multiples of 8; use "auto"',
            ),
            example("shared", shared_with=("other",), refusal='it shares parameters with "other"'),
            example(
                "linear-subclass",
                first=Doubled,
                refusal='its layer "0" cannot shift: 0 is not torch.nn.Linear; its own forward would be lost',
            ),
        ]
