"""Options of a mixture of a multiply expert and a shift expert, and the router that they describe."""

from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor

from reparam.ops.base import OperatorOptions
from reparam.ops.routing import Gate, Router
from reparam.ops.shift_weight import ShiftOptions


class MoeMlpOptions(OperatorOptions):
    """Options of `moe_mlp`; the defaults are ours except `latency`, which is the released constant until measured."""

    shift: ShiftOptions = Field(ShiftOptions(), description="Options of the shift expert's layers.")
    latency: tuple[float, float] = Field((0.6, 0.4), description="Time of the multiply and the shift expert, any unit.")
    gate: Gate = Field("straight_through", description="p / sg(p), p, or the released constant 1.")
    router_init: Literal["zero", "normal"] = Field("zero", description="Zero starts with every token multiplied.")
    router_noise: float = Field(0.5, ge=0, description="Standard deviation on the logits as training starts.")
    router_noise_end: float = Field(0.1, ge=0, le=1, description="Share of it at the end of a stage; 1 keeps it all.")
    router_bias: bool = Field(
        False, description="A trained bias on the logits, without which evenly spread tokens split in halves."
    )
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

    def make_router(self, width: int, *, like: Tensor) -> Router:
        """Returns a router of tokens with `width` channels, on the device and in the type of a tensor."""
        router = Router(
            width, latency=self.latency, gate=self.gate, init=self.router_init, noise=self.router_noise,
            noise_end=self.router_noise_end, bias=self.router_bias,
        )  # fmt: skip
        return router.to(device=like.device, dtype=like.dtype)
