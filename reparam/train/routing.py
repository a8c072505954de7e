"""What the routers do while a model runs: the balance loss to add, and the share of tokens that each layer multiplies.

A forward hook on every router collects both. Nothing is read on the host until `shares` is asked for, so recording does
not make an accelerator wait.
"""

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reparam.ops.routing import MULTIPLY, Router, Routing, load_balance_loss


class RoutingRecorder:
    """Context manager that records every `Router` of a model; its hooks are gone on exit.

    The balance loss is collected only while the router trains and gradients are on; shares are collected always.
    """

    def __init__(self, model: nn.Module) -> None:
        self._routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        self._handles: list[RemovableHandle] = []
        self._losses: dict[str, list[Tensor]] = {}
        self._multiplied: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def __enter__(self) -> "RoutingRecorder":
        for name, router in self._routers.items():
            self._handles.append(router.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __len__(self) -> int:
        """How many routers there are."""
        return len(self._routers)

    def start_forward(self) -> None:
        """Drops balance losses that nobody took, such as those of a recomputation in backward."""
        self._losses.clear()

    def balance_loss(self) -> Tensor | None:
        """Returns the mean over layers of the losses since `start_forward`, a scalar; None when no router trained.

        A layer that ran more than once counts with the mean over its runs.
        """
        layers = [torch.stack(losses).mean() for losses in self._losses.values()]
        self._losses.clear()
        return torch.stack(layers).mean() if layers else None

    @property
    def layers(self) -> tuple[str, ...]:
        """The routers that ran, in the order of `tokens`."""
        return tuple(self._multiplied)

    def tokens(self) -> Tensor:
        """Returns (L, 2) int64: of each layer so far, tokens that took the multiply expert, and all tokens."""
        if not self._multiplied:
            return torch.zeros(0, 2, dtype=torch.int64)
        multiplied = torch.stack(list(self._multiplied.values()))
        return torch.stack([multiplied, multiplied.new_tensor([self._tokens[name] for name in self.layers])], dim=1)

    def shares(self) -> dict[str, float]:
        """Returns layer -> share of its tokens so far that took the multiply expert; waits for the device."""
        return mult_shares(self.layers, self.tokens())

    def _hook(self, name: str):  # type: ignore[no-untyped-def]  # torch's hook type is a union that fits no function
        def record(router: Router, inputs: tuple[Tensor, ...], routing: Routing) -> None:
            if router.training and torch.is_grad_enabled():
                loss = load_balance_loss(routing, router.latency, noise=router.noise)
                self._losses.setdefault(name, []).append(loss)
            multiplied = (routing.expert.detach() == MULTIPLY).sum()
            before = self._multiplied.get(name)
            self._multiplied[name] = multiplied if before is None else before + multiplied
            self._tokens[name] = self._tokens.get(name, 0) + routing.expert.numel()

        return record


def mult_shares(layers: Sequence[str], tokens: Tensor) -> dict[str, float]:
    """Returns layer -> share of its tokens that took the multiply expert, of counts (L, 2); waits for the device."""
    return {name: multiplied / every for name, (multiplied, every) in zip(layers, tokens.tolist(), strict=True)}
