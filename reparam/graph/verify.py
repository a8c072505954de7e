"""What a legal result is, checked step by step on random inputs of the recorded shapes.

An attention owner must give its own bits with an exact core, in eval and in training mode under one seed, and other
bits with a perturbed one; only then does the operator take the core's place. Every operator must keep the shape, stay
finite and pass a gradient to each of its parameters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.errors import RewriteError
from reparam.graph.attention_surgery import OpenedCore, installed
from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.graph.records import StagePlan
from reparam.ops.base import Operator
from reparam.ops.dense import DenseAttention
from reparam.ops.site import AttentionForm
from reparam.trace.record import ModuleCall, Trace

_SEED = 0
_PERTURBATION = 1.5
Call = tuple[tuple[Any, ...], dict[str, Any]]


def check_exact_core(
    owner: nn.Module,
    calls: Sequence[ModuleCall],
    form: AttentionForm,
    opened: OpenedCore,
    *,
    path: str,
) -> None:
    """Proves the surgery with softmax attention as the core; leaves the owner as it was.

    Raises:
        RewriteError: the exact core changed the output, or a perturbed one did not.
    """
    made = [_random_call(call.args, call.kwargs, like=owner) for call in calls]
    expected = {mode: _run(owner, made, training=mode) for mode in (False, True)}
    exact = DenseAttention(form.model_copy(update={"dropout": opened.dropout}))
    with installed(owner, exact, opened):
        fault = _fault_of_exact_core(owner, made, expected, exact)
    if fault is not None:
        raise RewriteError(f'"{path}" ({type(owner).__name__}): {fault}; keep it with a rule operator = "keep"')


def _fault_of_exact_core(
    owner: nn.Module, calls: Sequence[Call], expected: dict[bool, list[Tensor]], exact: DenseAttention
) -> str | None:
    for training, outputs in expected.items():
        mode = "training" if training else "evaluation"
        try:
            got = _run(owner, calls, training=training)
        except Exception as error:
            # Whatever a wrong graph raises, the user's question is the same: which module, and what to do.
            return f"with an exact core it does not run in {mode} mode ({error})"
        if not _equal(got, outputs):
            return f"with an exact core its output in {mode} mode is not the original's"
    exact.perturbation = _PERTURBATION
    if _equal(_run(owner, calls, training=False), expected[False]):
        return "its output does not depend on the core that was put in"
    return None


def check_operator(
    module: nn.Module,
    operator: Operator,
    inputs: Sequence[Call] | tuple[int, ...],
    *,
    path: str,
    output_shape: tuple[int, ...] | None = None,
) -> None:
    """Runs `module`, which holds `operator`, and checks shape, finiteness and gradients.

    Args:
        module: what is called.
        operator: whose parameters must all get a gradient.
        inputs: recorded calls, or the shape of a single tensor argument.
        path: for messages.
        output_shape: wanted shape, when known.
    """
    calls = _as_calls(inputs)
    trainable = {name: p for name, p in operator.named_parameters() if p.requires_grad}
    with _mode(module, training=False), torch.enable_grad(), seeded():
        made = [_random_call(*call, like=module) for call in calls]
        try:
            outputs = [tensor for args, kwargs in made for tensor in _tensors(module(*args, **kwargs))]
        except Exception as error:
            raise RewriteError(f'"{path}": {operator.name} does not run on its recorded input: {error}') from error
        loss = torch.stack([(t * torch.randn_like(t)).sum() for t in outputs if t.is_floating_point()]).sum()
        can_learn = bool(trainable) and loss.requires_grad
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True) if can_learn else ()
    if output_shape and outputs[0].shape != torch.Size(output_shape):
        raise RewriteError(f'"{path}": {operator.name} gives shape {tuple(outputs[0].shape)}, wanted {output_shape}')
    if not all(bool(torch.isfinite(t).all()) for t in outputs):
        raise RewriteError(f'"{path}": {operator.name} gives values that are not finite')
    reached = {name for name, gradient in zip(trainable, gradients, strict=False) if gradient is not None}
    without = [name for name in trainable if name not in reached]
    if without:
        raise RewriteError(f'"{path}": no gradient reaches {", ".join(without)} of {operator.name}')


def check_stage(model: nn.Module, stage: StagePlan, trace: Trace) -> None:
    """No attention that the plan converts may be left in a run of the rewritten model."""
    converted = {step.site.path for step in stage.steps if step.site.kind == "attention"}
    left = [s.path for s in find_sites(Scene(model, trace)) if s.kind == "attention" and s.path in converted]
    if left:
        raise RewriteError(f"softmax attention is left in {', '.join(left)}, which the plan converts")


def _as_calls(inputs: Sequence[Call] | tuple[int, ...]) -> list[Call]:
    if inputs and isinstance(inputs[0], int):
        return [((torch.empty(inputs, device="meta"),), {})]  # type: ignore[arg-type]
    return list(inputs)  # type: ignore[arg-type]


def _random_call(args: tuple[Any, ...], kwargs: dict[str, Any], *, like: nn.Module) -> Call:
    """The recorded call with normal values in its floating tensors; integer tensors become zeros."""
    reference = next((p for p in like.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(_SEED)

    def fill(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=reference.device)
        return torch.randn(tensor.shape, generator=generator).to(reference)

    filled: Call = pytree.tree_map_only(Tensor, fill, (args, kwargs))
    return filled


@torch.no_grad()
def _run(owner: nn.Module, calls: Sequence[Call], *, training: bool) -> list[Tensor]:
    """Outputs of the calls under one seed."""
    with _mode(owner, training=training), seeded():
        return [tensor for args, kwargs in calls for tensor in _tensors(owner(*args, **kwargs))]


@contextmanager
def seeded() -> Iterator[None]:
    """Fixed random numbers inside, the caller's own afterwards, on every device that is in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_SEED)
        yield


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Sets the module's own flag and that of dropouts; other children run in eval and keep their statistics."""
    flags = [(child, child.training) for child in module.modules()]
    for child in module.modules():
        child.training = training and (child is module or isinstance(child, DenseAttention | nn.Dropout))
    try:
        yield
    finally:
        for child, flag in flags:
            child.training = flag


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
