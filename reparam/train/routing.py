"""What the routers do while a model runs: the balance loss to add, and the share of tokens that each layer multiplies.

A forward hook on every router collects both. Nothing is read on the host until `shares` is asked for, so recording does
not make an accelerator wait.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reparam.ops.routing import MULTIPLY, SHIFT, Router, Routing, expert_use, load_balance_loss
from reparam.processes import sum_over_processes_
from reparam.train.hooks import Hooked


class RoutingRecorder(Hooked):
    """Context manager that records every `Router` of a model; its hooks are gone on exit.

    The balance loss is collected only while the router trains and gradients are on; shares are collected always.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        self._uses: dict[str, list[Tensor]] = {}
        self._multiplied: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def _set_hooks(self) -> Iterator[RemovableHandle]:
        for name, router in self._routers.items():
            yield router.register_forward_hook(self._hook(name))

    def __len__(self) -> int:
        """How many routers there are."""
        return len(self._routers)

    def start_forward(self) -> None:
        """Drops what balance losses nobody took, such as those of a recomputation in backward, are made of."""
        self._uses.clear()

    def balance_loss(self, *, of_all: bool = True) -> Tensor | None:
        """Returns the mean over layers of the losses since `start_forward`, a scalar; None when no router trained.

        A layer that ran more than once counts with the mean over its runs. All processes must ask for it together:
        the loss is that of all their tokens, and one exchange serves all layers. Without `of_all` it is that of this
        process's tokens, and nobody else need ask.
        """
        uses, self._uses = self._uses, {}
        if not uses:
            return None
        runs = torch.stack([use for layer in uses.values() for use in layer])
        latency = runs.new_tensor([self._routers[name].latency for name, layer in uses.items() for _ in layer])
        losses = load_balance_loss(runs, latency, of_all=of_all).split([len(layer) for layer in uses.values()])
        return torch.stack([layer.mean() for layer in losses]).mean()

    @property
    def layers(self) -> tuple[str, ...]:
        """All routers, in the order of `tokens`."""
        return tuple(self._routers)

    def tokens(self) -> Tensor:
        """Returns (L, 2) int64: of each layer so far, tokens that took the multiply expert, and all tokens.

        A router that did not run has its row, so that the counts of processes can be added up.
        """
        if not self._routers:
            return torch.zeros(0, 2, dtype=torch.int64)
        device = next(iter(self._routers.values())).weight.device
        none = torch.zeros((), dtype=torch.int64, device=device)
        multiplied = torch.stack([self._multiplied.get(name, none).to(device) for name in self.layers])
        return torch.stack([multiplied, multiplied.new_tensor([self._tokens.get(name, 0) for name in self.layers])], 1)

    def shares(self) -> dict[str, float]:
        """Returns layer -> share of its tokens so far that took the multiply expert; waits for the device.

        Under a distributed launch every process asks at the same step, and gets the shares of all tokens.
        """
        return mult_shares(self.layers, sum_over_processes_(self.tokens()))

    def state(self) -> dict[str, list[int]]:
        """Returns layer -> tokens that took the multiply expert, and all tokens, over all processes."""
        counts = zip(self.layers, sum_over_processes_(self.tokens()).tolist(), strict=True)
        return {name: both for name, both in counts if any(both)}

    def load_state(self, state: Mapping[str, Sequence[int]]) -> None:
        """Counts on from `state`, which one process takes for all."""
        self._multiplied = {name: torch.tensor(multiplied) for name, (multiplied, _) in state.items()}
        self._tokens = {name: tokens for name, (_, tokens) in state.items()}

    def clear(self) -> None:
        """Forgets all counts."""
        self._multiplied, self._tokens = {}, {}

    def _hook(self, name: str):  # type: ignore[no-untyped-def]  # torch's hook type is a union that fits no function
        def record(router: Router, inputs: tuple[Tensor, ...], routing: Routing) -> None:
            if router.training and torch.is_grad_enabled():
                self._uses.setdefault(name, []).append(expert_use(routing, noise=router.sigma))
            multiplied = (routing.expert.detach() == MULTIPLY).sum()
            before = self._multiplied.get(name)
            self._multiplied[name] = multiplied if before is None else before.to(multiplied.device) + multiplied
            self._tokens[name] = self._tokens.get(name, 0) + routing.expert.numel()

        return record


def trains_routers(model: nn.Module) -> bool:
    """Whether the model has a router that learns."""
    return any(isinstance(module, Router) and module.weight.requires_grad for module in model.modules())


def target_shares(model: nn.Module) -> dict[str, float]:
    """Returns router -> share of tokens to multiply, in (0, 1), at which both experts finish together."""
    routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
    return {name: router.latency[SHIFT] / sum(router.latency) for name, router in routers.items()}


def mult_shares(layers: Sequence[str], tokens: Tensor) -> dict[str, float]:
    """Returns layer -> share of its tokens that took the multiply expert, of counts (L, 2); waits for the device.

    Layers without tokens are left out.
    """
    counts = zip(layers, tokens.tolist(), strict=True)
    return {name: multiplied / every for name, (multiplied, every) in counts if every}
