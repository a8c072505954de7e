"""Where the tokens of real images went: which expert took each of them, in each mixture, on the token grid."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reparam.graph.token_grid import find_token_grid
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.routing import MULTIPLY, Router, Routing
from reparam.ops.site import TokenGrid
from reparam.recipe.schema import Frozen
from reparam.trace.probe import probe
from reparam.trace.record import ModuleCall, Trace
from reparam.train.hooks import Hooked


class LayerMap(Frozen):
    """One router and N images: `multiplied` holds for each image one row of 0 and 1 per row of the grid, 1 multiplied.

    Tokens in front of the grid (`grid.prefix`, class and register tokens) are left out. Without a grid there is no map
    and `no_grid` says why.
    """

    path: str
    grid: TokenGrid | None = None
    multiplied: tuple[tuple[str, ...], ...] = ()
    no_grid: str | None = None


def routing_map(model: nn.Module, images: Tensor) -> tuple[tuple[LayerMap, ...], Tensor]:
    """Runs the model in eval mode on images; returns one map for each router, and the logits.

    Args:
        model: its routers may be none; left in eval mode.
        images: (N, C, H, W), on the model's device.
    """
    with torch.no_grad(), _Recorder(model.eval()) as recorder:
        logits = model(images)
    trace = probe(model, torch.empty_like(images, device="meta")) if recorder.experts else Trace()
    return tuple(_layer(model, trace, path, expert) for path, expert in recorder.experts.items()), logits


class _Recorder(Hooked):
    """Keeps which expert took each token, in the first run of each router."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._routers = {name: module for name, module in model.named_modules() if isinstance(module, Router)}
        self.experts: dict[str, Tensor] = {}

    def _set_hooks(self) -> Iterator[RemovableHandle]:
        for name, router in self._routers.items():
            yield router.register_forward_hook(self._hook(name))

    def _hook(self, name: str):  # type: ignore[no-untyped-def]  # torch's hook type is a union that fits no function
        def record(router: Router, inputs: tuple[Tensor, ...], routing: Routing) -> None:
            self.experts.setdefault(name, routing.expert.cpu())

        return record


def _layer(model: nn.Module, trace: Trace, path: str, expert: Tensor) -> LayerMap:
    owner = path.rpartition(".")[0]
    calls = trace.calls_of(owner)
    if not calls:
        return LayerMap(path=path, no_grid="its module was not called as one")
    grid, reason = _grid(trace, model.get_submodule(owner), calls[0])
    if grid is None:
        return LayerMap(path=path, no_grid=reason)
    tokens = expert.reshape(-1, grid.prefix + grid.height * grid.width)[:, grid.prefix :]
    rows = (tokens == MULTIPLY).int().reshape(-1, grid.height, grid.width).tolist()
    return LayerMap(
        path=path, grid=grid, multiplied=tuple(tuple("".join(map(str, row)) for row in image) for image in rows)
    )


def _grid(trace: Trace, owner: nn.Module, call: ModuleCall) -> tuple[TokenGrid | None, str | None]:
    """The grid of the tokens that a mixture takes; a map (N, C, H, W) or (N, H, W, C) has its own."""
    tokens, images = call.inputs[0], trace.inputs[0].shape[0]
    if tokens.shape[0] != images:
        return None, f"it takes {tokens.shape[0] / images:g} parts of each image one by one"
    if len(tokens.shape) == 4:
        height, width = tokens.shape[2:] if _is_channels_first(owner) else tokens.shape[1:3]
        return TokenGrid(prefix=0, height=height, width=width), None
    if len(tokens.shape) != 3:
        return None, "it takes one token of each image"
    return find_token_grid(trace, tokens, dim=1)


def _is_channels_first(owner: nn.Module) -> bool:
    if isinstance(owner, RoutedLayer):
        return isinstance(owner.multiply, nn.Conv2d)
    return isinstance(owner, MoeMlp) and owner.form.layout == "channels_first"
