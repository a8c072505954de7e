"""Where a loss that is infinite or not a number comes from: one more run of the micro-batch, every layer watched."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class _Call:
    """One call of a module. `taken` and `given` say what is wrong with its inputs and its output; None: all finite."""

    path: str
    taken: str | None
    given: str | None = None
    inner: list["_Call"] = field(default_factory=list)


def first_nonfinite(model: nn.Module, images: Tensor, *, loss: Callable[[Tensor], Tensor] | None = None) -> str | None:
    """Says what made the first number that is not finite, or None when this run has none.

    The images are examined first, then parameters and buffers, the outputs of the modules in the order of the forward,
    the loss, and the gradients in the order of the backward. The model runs as it stands: in its own mode, on its
    own device, under the caller's autocast. Random draws (dropout, a router's noise) are not those of the run that
    failed, so None does not acquit the model.

    Parameters, gradients, buffers such as running statistics, and the state of the random generators of torch are
    afterwards what they were.

    Args:
        model: not a container such as DDP's.
        images: the micro-batch (B, ...).
        loss: takes the model's output to a scalar; without it there is no backward.

    Returns:
        One sentence without a full stop, such as "blocks.3.attn: its output holds NaN while its inputs are finite".
    """
    with _unchanged(model, images.device), torch.enable_grad():
        return _in_images(images) or _in_state(model) or _in_run(model, images, loss)


def _in_images(images: Tensor) -> str | None:
    if not (fault := _fault(images)):
        return None
    first = int((~images.isfinite()).flatten(1).any(dim=1).nonzero()[0])
    return f"the images: image {first} of the batch is the first that holds {fault}"


def _in_state(model: nn.Module) -> str | None:
    """A parameter that is not finite, or a buffer that holds NaN: masks hold infinity on purpose."""
    for name, parameter in model.named_parameters():
        if _fault(parameter):
            bad = int((~parameter.isfinite()).sum())
            return f"parameter {name}: {bad} of its {parameter.numel()} values are not finite"
    for name, buffer in model.named_buffers():
        if bad := int(buffer.isnan().sum()):
            return f"buffer {name}: {bad} of its {buffer.numel()} values are NaN"
    return None


def _in_run(model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor] | None) -> str | None:
    with ExitStack() as stack:
        gradients = _Gradients(stack)
        with _watched(model, gradients) as calls:
            output = model(images)
        if calls[0].given:
            return _origin(calls[0])
        if loss is None:
            return None
        value = loss(output)
        if fault := _fault(value):
            return f"the loss: it is {fault} while the model's output is finite"
        return gradients.first(model, value)


def _origin(call: _Call) -> str:
    """Follows a bad output down to the innermost module that made it of good inputs."""
    name, last_good = call.path or "the model", -1
    for i, inner in enumerate(call.inner):
        if inner.taken and not inner.given:
            last_good = i  # a softmax takes masked scores, which are infinite on purpose
    for inner in call.inner[last_good + 1 :]:
        if inner.taken:
            return f"{name}: what it computes itself and hands to {inner.path} holds {inner.taken}"
        if inner.given:
            return _origin(inner)
    return f"{name}: its output holds {call.given} while its inputs are finite"


class _Gradients:
    """Watches gradients as backward makes them, and keeps the first fault; the stack takes the hooks off again."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._found: str | None = None

    def watch(self, tensor: Tensor, name: str) -> None:
        """Looks at the tensor's gradient when it comes."""

        def look(gradient: Tensor) -> None:
            if self._found is None and (fault := _fault(gradient)):
                self._found = f"gradient of {name}: it holds {fault} while the loss and all gradients before are finite"

        if tensor.requires_grad:
            handle = tensor.register_hook(look)
            self._stack.callback(handle.remove)

    def first(self, model: nn.Module, loss: Tensor) -> str | None:
        """Runs backward and returns the first fault; gradients that the parameters have stay as they are."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not named or not loss.requires_grad:
            return None
        for name, parameter in named.items():
            self.watch(parameter, name)
        torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return self._found


@contextmanager
def _watched(model: nn.Module, gradients: _Gradients) -> Iterator[list[_Call]]:
    """Yields a list that a forward inside fills with the call of the model, which holds all calls within."""
    calls: list[_Call] = []
    running: list[_Call] = []

    def enter(path: str) -> Callable[..., None]:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            call = _Call(path, _fault_in((args, kwargs)))
            (running[-1].inner if running else calls).append(call)
            running.append(call)

        return before

    def leave(path: str) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            running.pop().given = _fault_in(output)
            for tensor in _tensors(output):
                gradients.watch(tensor, f"the output of {path or 'the model'}")

        return after

    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave(path)).remove)
        yield calls


@contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts buffers and random generators back to what they were."""
    was = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in was:
                setattr(module, name, buffer.copy_(values))


def _fault_in(value: Any) -> str | None:
    return next((fault for tensor in _tensors(value) if (fault := _fault(tensor))), None)


def _fault(tensor: Tensor) -> str | None:
    """What is wrong with a tensor's values; None when they are finite."""
    tensor = tensor.detach()  # a look must not save tensors in the graph, which a checkpoint counts
    if bool(tensor.isfinite().all()):
        return None
    return "NaN" if bool(tensor.isnan().any()) else "infinity"


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
