"""Which layers are calibrated, in the order in which they run, and the blocks that hold them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reparam.calibrate.moments import ShiftProduct
from reparam.calibrate.records import Uncalibrated
from reparam.ops.binary_attention import BinaryLinearAttention
from reparam.ops.shift import ShiftLinear
from reparam.ops.shift_conv2d import ShiftConv2d

Calibrated = ShiftProduct | BinaryLinearAttention


class Target(NamedTuple):
    """A layer to calibrate and the block that it is in, if any."""

    path: str
    block: str | None


class Order(NamedTuple):
    """Targets in the order of their first call, and what cannot be one."""

    targets: tuple[Target, ...]
    left_out: tuple[Uncalibrated, ...]


@torch.no_grad()
def find_order(model: nn.Module, dense: nn.Module, images: Tensor, *, chosen: Callable[[str], bool]) -> Order:
    """Runs the converted model once, in eval mode, to see what runs when; layers whose path is not chosen are left.

    A block is an outermost member of an `nn.Sequential` or `nn.ModuleList` that is called once and gives one tensor.
    """
    wanted = {path: layer for path, layer in _wanting(model) if chosen(path)}
    ran, calls = _calls(model, images)
    counterparts = dict(dense.named_modules())
    blocks = _outermost([path for path in _members(model) if calls.get(path) == 1])
    targets, left_out = [], []
    for path in sorted(wanted, key=lambda path: ran.index(path) if path in ran else len(ran)):
        if not _follows(wanted[path], counterparts.get(path)):
            left_out.append(Uncalibrated(path=path, reason="the dense model has no layer of its own at this path"))
        elif path not in ran:
            left_out.append(Uncalibrated(path=path, reason="it did not run on the calibration images"))
        else:
            block = next((b for b in blocks if path == b or path.startswith(f"{b}.")), None)
            targets.append(Target(path, block))
    return Order(tuple(targets), tuple(left_out))


def _follows(layer: Calibrated, dense: nn.Module | None) -> bool:
    """Whether what the dense model has at a layer's path is what the layer replaced."""
    if isinstance(layer, BinaryLinearAttention):
        return dense is not None
    return isinstance(dense, nn.Linear | nn.Conv2d)


def _wanting(model: nn.Module) -> Iterator[tuple[str, Calibrated]]:
    for path, module in model.named_modules():
        if (
            isinstance(module, ShiftLinear | ShiftConv2d | BinaryLinearAttention)
            and module.options.init == "calibrated"
        ):
            yield path, module


def _calls(model: nn.Module, images: Tensor) -> tuple[list[str], dict[str, int]]:
    """Paths in the order of their first call with a tensor, and how often each was called and gave a tensor."""
    ran: dict[str, None] = {}
    calls: dict[str, int] = {}
    handles = []
    for path, module in model.named_modules():

        def before(_: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].numel():
                ran[path] = None

        def after(_: nn.Module, __: tuple[Any, ...], output: Any, path: str = path) -> None:
            calls[path] = calls.get(path, 0) + (1 if isinstance(output, Tensor) else 2)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(ran), calls


def _members(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield from (f"{path}.{name}" if path else name for name, _ in module.named_children())


def _outermost(paths: list[str]) -> list[str]:
    found: list[str] = []
    for path in sorted(paths, key=lambda path: path.count(".")):
        if not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return found
