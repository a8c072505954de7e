"""What adder layers share: options, the weight, the normalisation behind it, and AdderNet's adaptive learning rate.

The adaptive learning rate gives the gradient of each adder weight the L2 norm eta * sqrt(k), k its number of elements,
whatever the scale of the loss. It belongs into the optimiser's step, once gradients are unscaled, accumulated and
reduced over processes; `lr = "backward"` is the released form, which normalises each micro-batch of each process.
Source: AdderNet, arXiv:1912.13200.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reparam.counts import OpCount
from reparam.ops.adder_init import slope_matched
from reparam.ops.base import Operator, OperatorOptions
from reparam.ops.fitting import correlation, fit_
from reparam.ops.site import Site

#: Mean and standard deviation of a normalised activation behind a ReLU: max(z, 0) with z ~ N(0, 1).
_RELU_MEAN, _RELU_STD = 1 / math.sqrt(2 * math.pi), math.sqrt(0.5 - 1 / (2 * math.pi))
#: Gains that a fit tries, and its first learning rate, in standard deviations of the input.
_GAINS = (0.1, 0.25, 0.5, 1.0, 2.0)
_FIT_LR = 0.05
#: A channel that hardly changes has no slope to match.
SMALLEST_STD = 1e-3
#: A gradient below this norm is left as it is.
SMALLEST_NORM = 1e-12

NO_NORM = 'no normalisation reads its output, and adders do not train without one; set norm = "insert"'


class AdderOptions(OperatorOptions):
    """Options of adder layers."""

    norm: Literal["insert", "require"] = Field(
        "insert", description="Where no normalisation follows: insert a batch norm, or refuse the site."
    )
    init: Literal["slope", "normal"] = Field(
        "slope", description="Weights whose average slope is the pretrained weight, or N(0, 1) as published."
    )
    gain: float = Field(1.0, gt=0, description='Multiple of a channel\'s root mean square that "slope" makes slope 1.')
    lr: Literal["step", "backward", "plain"] = Field(
        "step", description="Adaptive learning rate in the optimiser's step, in backward as released, or none."
    )
    eta: float = Field(0.2, gt=0, description="RMS that the adaptive learning rate gives each layer's gradient.")


def refuse_bare(site: Site, options: AdderOptions) -> str | None:
    """Why a layer that no normalisation follows is refused, where the options want one."""
    return NO_NORM if options.norm == "require" and not site.normalised else None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, eta: float) -> Tensor:
        ctx.eta = eta
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return scaled_gradient(gradient, ctx.eta), None


def scaled_gradient(gradient: Tensor, eta: float) -> Tensor:
    """Returns the gradient with L2 norm eta * sqrt(k), k its number of elements; one of (nearly) zero stays."""
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))  # the factor can overflow float16
    norm = torch.linalg.vector_norm(wide)
    factor = torch.where(norm > SMALLEST_NORM, eta * math.sqrt(gradient.numel()) / norm.clamp_min(SMALLEST_NORM), 1.0)
    return (wide * factor).to(gradient.dtype)


class AdderLayer(Operator):
    """Base of the layers that compute negative L1 distances; subclasses add their product and their normalisation.

    State: `weight` (O, ...), `bias` (O,) where the dense layer had one, `norm.*` where a normalisation was inserted.
    """

    Options = AdderOptions

    def __init__(self, weight: Tensor, bias: Tensor | None, options: AdderOptions, *, norm: nn.Module) -> None:
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(_initial(weight, options))
        self.bias = None if bias is None else nn.Parameter(bias.detach())
        self.norm = norm

    def step_gradients(self) -> Mapping[str, float]:
        """The weight's gradient is given a norm in the step, unless the options say otherwise."""
        return {"weight": self.options.eta} if self.options.lr == "step" else {}

    @classmethod
    def remark(cls, site: Site, options: AdderOptions) -> str | None:
        """Says where a normalisation is inserted."""
        return None if site.normalised else "a batch norm is inserted behind it"

    @abstractmethod
    def differences(self, x: Tensor) -> Tensor:
        """The output before the normalisation."""

    @torch.no_grad()
    def fit_to(
        self, dense: Tensor, x: Tensor, target: Tensor, *, mean: Tensor, std: Tensor, steps: int, channel: int
    ) -> float:
        """Chooses the best gain for these inputs, then steps of Adam; fits an inserted norm's scale and shift too.

        Args:
            dense: weight of the replaced layer (O, ...).
            x: inputs.
            target: outputs of the replaced layer.
            mean: of the inputs, broadcastable to the weight.
            std: of the inputs, likewise.
            steps: of Adam.
            channel: axis of the output channels.
        """

        def quality() -> float:
            return float(correlation(self.differences(x), target, channel=channel).mean())

        candidates = [slope_matched(dense, mean=mean, std=std, gain=gain) for gain in _GAINS]
        scores = []
        for candidate in candidates:
            self.weight.copy_(candidate)
            scores.append(quality())
        self.weight.copy_(candidates[scores.index(max(scores))])
        fit_(self.differences, [self.weight], x, target, steps=steps, lr=_FIT_LR * float(std.mean()), channel=channel)
        if isinstance(self.norm, nn.BatchNorm1d | nn.BatchNorm2d):
            deviation, average = torch.std_mean(target.movedim(channel, 0).flatten(1), dim=1)
            self.norm.weight.copy_(deviation)
            self.norm.bias.copy_(average)
        return quality()

    def used_weight(self) -> Tensor:
        """The weight as the forward reads it."""
        if self.options.lr != "backward":
            return self.weight
        scaled: Tensor = _ScaledGradient.apply(self.weight, self.options.eta)
        return scaled

    def declares(self, path: str) -> bool:
        """Everything but an inserted norm, which runs and counts like any other."""
        return path != "norm"

    def count(self, *, outputs: int, depth: int) -> OpCount:
        """A subtraction, an absolute value (a comparison) and an addition per difference; one add for each bias."""
        differences, bias = outputs * depth, outputs if self.bias is not None else 0
        return OpCount({("add", "f32"): 2 * differences + bias, ("cmp", "f32"): differences})


def _initial(weight: Tensor, options: AdderOptions) -> Tensor:
    if weight.is_meta:
        return torch.empty_like(weight)
    if options.init == "slope":
        return slope_matched(weight, mean=_RELU_MEAN, std=_RELU_STD, gain=options.gain)
    return torch.randn_like(weight)
