"""The router of a mixture of experts, and the latency-aware load-balancing loss that trains it.

    p = softmax(x @ W'),   expert = argmax(x @ W' + noise),   noise ~ N(0, sigma**2) while training, 0 in eval

    L = SCV(alpha_i * importance_i) + SCV(alpha_i * load_i),   SCV(z) = var(z) / mean(z)**2, population variance
    importance_i = sum over tokens of p_i
    load_i = sum over tokens of P(logit_i + fresh noise beats the threshold) = Phi((logit_i - threshold_i) / sigma)
    threshold_i = the other expert's noisy logit

With two experts the threshold of the chosen one is the runner-up's noisy logit and that of the other is the winner's,
so it is the other expert's in both cases. alpha_i is the expert's share of the latency, so L is 0 when expected tokens
are inversely proportional to latency and both experts finish together.

Source: ShiftAddViT, arXiv:2306.06446, and Shazeer et al., arXiv:1701.06538 (load). Repaired: thresholds and logits are
on one scale (released: probabilities against logits), the loss reaches the router (released: never), noise only in
training. Shapes: x (T, C), logits (T, 2).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

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
        noise: standard deviation sigma on the logits while training.
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
    ) -> None:
        super().__init__()
        self.latency, self.gate, self.noise = latency, gate, noise
        start = torch.zeros(2, width) if init == "zero" else 0.02 * torch.randn(2, width)
        # The released gate passes no gradient on; a parameter that cannot learn must not look as if it could.
        self.weight = nn.Parameter(start, requires_grad=gate != "one")

    def forward(self, tokens: Tensor) -> Routing:
        """Routes tokens (T, C)."""
        logits = nn.functional.linear(tokens, self.weight).float()
        noisy = logits + self.noise * torch.randn_like(logits) if self.training and self.noise else logits
        expert = (noisy[:, SHIFT] > noisy[:, MULTIPLY]).long()
        return Routing(expert, self._gate(logits, expert).to(tokens.dtype), logits, noisy)

    def _gate(self, logits: Tensor, expert: Tensor) -> Tensor:
        if self.gate == "one" or (self.gate == "straight_through" and not torch.is_grad_enabled()):
            return torch.ones_like(logits[:, :1])
        chosen = logits.softmax(dim=-1).gather(1, expert.unsqueeze(1))
        return chosen / chosen.detach() if self.gate == "straight_through" else chosen

    def extra_repr(self) -> str:
        """Width and settings, for `repr`."""
        return f"width={self.weight.shape[1]}, latency={self.latency}, gate={self.gate}, noise={self.noise}"


def squared_coefficient_of_variation(values: Tensor) -> Tensor:
    """Returns var / mean**2 with the population variance; for two values ((a - b) / (a + b))**2."""
    return values.var(correction=0) / values.mean().square().clamp_min(1e-10)


def expected_load(routing: Routing, *, noise: float) -> Tensor:
    """Returns load (2,): tokens each expert expects under fresh noise, differentiable in the logits."""
    threshold = routing.noisy_logits.detach().flip(-1)
    beats: Tensor = torch.special.ndtr((routing.logits - threshold) / noise)
    return beats.sum(dim=0)


def load_balance_loss(routing: Routing, latency: tuple[float, float], *, noise: float = 0.5) -> Tensor:
    """Returns the latency-aware load-balancing loss, a scalar in [0, 2].

    Args:
        routing: of one layer and batch.
        latency: of the two experts, any unit.
        noise: the router's sigma; at 0 the load term is left out, for its estimate has no gradient.
    """
    alpha = routing.logits.new_tensor(latency) / sum(latency)
    loss = squared_coefficient_of_variation(alpha * routing.logits.softmax(dim=-1).sum(dim=0))
    if noise:
        loss = loss + squared_coefficient_of_variation(alpha * expected_load(routing, noise=noise))
    return loss
