"""The router of a mixture of experts, and the latency-aware load-balancing loss that trains it.

    logits = x @ W' + b,   p = softmax(logits)
    expert = argmax(logits + noise),   noise ~ N(0, sigma**2) while training, 0 in eval

    L = SCV(alpha_i * importance_i) + SCV(alpha_i * load_i),   SCV(z) = var(z) / mean(z)**2, population variance
    importance_i = sum over tokens of p_i
    load_i = sum over tokens of P(logit_i + fresh noise beats the threshold) = Phi((logit_i - threshold_i) / sigma)
    threshold_i = the other expert's noisy logit

With two experts the threshold of the chosen one is the runner-up's noisy logit and that of the other is the winner's,
so it is the other expert's in both cases. alpha_i is the expert's share of the latency, so L is 0 when expected tokens
are inversely proportional to latency and both experts finish together. Sums run over the tokens of all processes.

While sigma is wide against the spread of the logits, noise alone meets the target: logits that differ by the same
amount for every token make L small, and without noise all of those tokens go one way. So sigma falls as training goes
on, until the load is nearly the share that evaluation sees.

Source: ShiftAddViT, arXiv:2306.06446, and Shazeer et al., arXiv:1701.06538 (load). Repaired: thresholds and logits are
on one scale (released: probabilities against logits), the loss reaches the router (released: never), noise only in
training. Ours: the noise falls. Shapes: x (T, C), logits (T, 2).
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from reparam.processes import process_count, sum_over_processes_

MULTIPLY, SHIFT = 0, 1
Gate = Literal["straight_through", "probability", "one"]


class Routing(NamedTuple):
    """Where each of T tokens goes: expert (T,) 0 multiply or 1 shift; gate (T, 1); logits and noisy_logits (T, 2)."""

    expert: Tensor
    gate: Tensor
    logits: Tensor
    noisy_logits: Tensor


class Router(nn.Module):
    """Sends each token to one of two experts; differentiable through the gate and through the balance loss.

    Args:
        width: channels C of a token.
        latency: time of the multiply and of the shift expert, in any unit; only their ratio matters.
        gate: "straight_through" is p / sg(p), 1 in value and p's relative gradient; "probability" is p as in the paper;
            "one" is the released constant, which leaves the router without a gradient.
        init: "zero" sends every token to the multiply expert in eval, so the converted model starts where the dense one
            stood, while training noise explores both; "normal" is N(0, 0.02**2).
        noise: standard deviation sigma on the logits at the start of training.
        noise_end: share of `noise` that is left at the end; 1 keeps it all along, as published.
        bias: add one number to each logit, from zero; without, tokens spread evenly around zero always split in halves.
    """

    #: Decay would pull every token towards a coin toss.
    no_decay = ("weight",)

    def __init__(
        self,
        width: int,
        *,
        latency: tuple[float, float] = (0.6, 0.4),
        gate: Gate = "straight_through",
        init: Literal["zero", "normal"] = "zero",
        noise: float = 0.5,
        noise_end: float = 0.1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.latency, self.gate, self.noise, self.noise_end = latency, gate, noise, noise_end
        self.sigma = noise
        start = torch.zeros(2, width) if init == "zero" else 0.02 * torch.randn(2, width)
        # The released gate passes no gradient on; a parameter that cannot learn must not look as if it could.
        self.weight = nn.Parameter(start, requires_grad=gate != "one")
        self.bias = nn.Parameter(torch.zeros(2), requires_grad=gate != "one") if bias else None

    def forward(self, tokens: Tensor) -> Routing:
        """Routes tokens (T, C)."""
        logits = nn.functional.linear(tokens, self.weight, self.bias).float()
        noisy = logits + self.sigma * torch.randn_like(logits) if self.training and self.sigma else logits
        expert = (noisy[:, SHIFT] > noisy[:, MULTIPLY]).long()
        return Routing(expert, self._gate(logits, expert).to(tokens.dtype), logits, noisy)

    def set_noise_(self, fraction_done: float) -> None:
        """Sets sigma, which falls along a half cosine from `noise` to `noise_end * noise`, as a stage goes on."""
        falling = (1 + math.cos(math.pi * fraction_done)) / 2
        self.sigma = self.noise * (self.noise_end + (1 - self.noise_end) * falling)

    def _gate(self, logits: Tensor, expert: Tensor) -> Tensor:
        if self.gate == "one" or (self.gate == "straight_through" and not torch.is_grad_enabled()):
            return torch.ones_like(logits[:, :1])
        chosen = logits.softmax(dim=-1).gather(1, expert.unsqueeze(1))
        return chosen / chosen.detach() if self.gate == "straight_through" else chosen

    def extra_repr(self) -> str:
        """Width and settings, for `repr`."""
        return f"width={self.weight.shape[1]}, latency={self.latency}, gate={self.gate}, noise={self.noise}"


def set_noise_(model: nn.Module, fraction_done: float) -> None:
    """Sets the exploration noise of every router for the next update of a stage.

    Args:
        model: with or without routers.
        fraction_done: updates made, over all updates of the stage, in [0, 1].
    """
    for module in model.modules():
        if isinstance(module, Router):
            module.set_noise_(fraction_done)


@torch.no_grad()
def send_all_to_shift_(model: nn.Module) -> None:
    """Makes every router send all tokens to the shift expert, at a gate of 1 whatever its kind."""
    for module in model.modules():
        if isinstance(module, Router):
            module.weight.zero_()
            # softmax([0, 200]) is [0, 1] to the last bit
            module.bias = nn.Parameter(module.weight.new_tensor([0.0, 200.0]), requires_grad=False)


def expert_use(routing: Routing, *, noise: float) -> Tensor:
    """Returns (2, 2): importance and expected load of the multiply and of the shift expert, differentiable in logits.

    Args:
        routing: of one layer and batch.
        noise: the sigma that it was drawn with; at 0 the load is 0, for its estimate has no gradient.
    """
    importance = routing.logits.softmax(dim=-1).sum(dim=0)
    if not noise:
        return torch.stack([importance, torch.zeros_like(importance)])
    threshold = routing.noisy_logits.detach().flip(-1)
    load = torch.special.ndtr((routing.logits - threshold) / noise).sum(dim=0)
    return torch.stack([importance, load])


def squared_coefficient_of_variation(values: Tensor) -> Tensor:
    """Returns var / mean**2 over the last axis with the population variance; of two values ((a - b) / (a + b))**2."""
    return values.var(dim=-1, correction=0) / values.mean(dim=-1).square().clamp_min(1e-10)


def load_balance_loss(use: Tensor, latency: Tensor, *, of_all: bool = True) -> Tensor:
    """Returns the latency-aware load-balancing loss (...), each in [0, 2], of all tokens of all processes.

    Each process gets the gradient of the mean over processes of their losses, times their number: averaged over
    processes, as DDP does, gradients are those of one process with all tokens.

    Args:
        use: `expert_use` (..., 2, 2) of this process.
        latency: of the two experts (..., 2), any unit.
        of_all: all processes ask together; otherwise the loss is that of this process's tokens.
    """
    alpha = latency / latency.sum(dim=-1, keepdim=True)
    summed = _sum_over_processes(use) if of_all else use
    return squared_coefficient_of_variation(alpha.unsqueeze(-2) * summed).sum(dim=-1)


def _sum_over_processes(values: Tensor) -> Tensor:
    if process_count() == 1:
        return values
    summed: Tensor = _AllReduce.apply(values)
    return summed


class _AllReduce(torch.autograd.Function):
    """s -> sum of s over processes; the gradient is that of the sum of all processes' losses."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        """Adds up."""
        return sum_over_processes_(values.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        """Adds up the gradients: each process's values are in every process's loss."""
        return sum_over_processes_(gradient.clone())
