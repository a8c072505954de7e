"""What a legal result is, checked step by step on random inputs of the recorded shapes.

An attention owner must give its own bits with an exact core, in eval and in training mode under one seed, and other
bits with a perturbed one; only then does the operator take the core's place. Where the products round otherwise, for
their operands lie otherwise in memory, the owner's values in double precision decide. Every operator must keep the
shape, stay finite and pass a gradient to each of its parameters.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.copying import copy_with
from reparam.errors import RewriteError
from reparam.graph.attention_surgery import OpenedCore, running
from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.graph.mlp_surgery import InlineMlp
from reparam.graph.records import StagePlan
from reparam.ops.base import Operator
from reparam.trace.record import ModuleCall, Trace

_SEED = 0
_LEAST_SPREAD = 1e-3
_ROUNDING = 1e-9
Call = tuple[tuple[Any, ...], dict[str, Any]]
Same = Callable[[Sequence[Tensor], Sequence[Tensor]], bool]


def check_exact_core(owner: nn.Module, calls: Sequence[ModuleCall], opened: OpenedCore, *, path: str) -> None:
    """Proves the match with the exact products in place of the model's, on a copy of the owner with random weights.

    The owner's own weights could hide a fault: attention can be nearly uniform, or a last layer start at zero.

    Raises:
        RewriteError: exact products changed the output, or a changed core did not.
    """
    with seeded():
        stand_in = copy_with(owner, parameter=random_weights)
    fault = _fault_of_exact_core(stand_in, calls, opened, same=same_bits)
    if fault is not None and not _agrees_in_double(stand_in, calls, opened):
        raise RewriteError(f'"{path}" ({type(owner).__name__}): {fault}; keep it with a rule operator = "keep"')


def random_weights(parameter: Tensor) -> Tensor:
    """Normal values: matrices keep the scale of activations, vectors (norms, gates, biases) their own mean and spread.

    Vectors without a spread, such as fresh norms or branches that start at zero, are given one.
    """
    if not parameter.is_floating_point():
        return parameter.clone()
    drawn = torch.randn_like(parameter)
    if parameter.dim() >= 2:
        return drawn / math.sqrt(parameter[0].numel())
    spread = float(parameter.float().std()) if parameter.numel() > 1 else 0.0
    return parameter.float().mean().to(parameter) + (spread if spread > _LEAST_SPREAD else 0.5) * drawn


def _agrees_in_double(stand_in: nn.Module, calls: Sequence[ModuleCall], opened: OpenedCore) -> bool:
    try:
        return _fault_of_exact_core(stand_in.double(), calls, opened, same=_same_in_double) is None
    except RuntimeError:
        return False  # a forward that fixes its precision does not run in another; then its bits decide


def _fault_of_exact_core(
    owner: nn.Module, recorded: Sequence[ModuleCall], opened: OpenedCore, *, same: Same
) -> str | None:
    calls = [random_call(call.args, call.kwargs, like=owner) for call in recorded]
    expected = {mode: run_calls(owner, calls, training=mode) for mode in (False, True)}
    for training, outputs in expected.items():
        mode = "training" if training else "evaluation"
        try:
            with running(owner, opened.exact):
                got = run_calls(owner, calls, training=training)
        except Exception as error:
            # Whatever a wrong graph raises, the user's question is the same: which module, and what to do.
            return f"with an exact core it does not run in {mode} mode ({error})"
        if not same(got, outputs):
            return f"with an exact core its output in {mode} mode is not the original's"
    for sources in opened.perturbed.values():
        with running(owner, sources):
            if same(run_calls(owner, calls, training=False), expected[False]):
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
        made = [random_call(*call, like=module) for call in calls]
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
    kept = {skip.site.path for skip in stage.skips if skip.site.kind == "attention"}
    converted = {step.site.path for step in stage.steps if step.site.kind == "attention"} - kept
    left = [s.path for s in find_sites(Scene(model, trace)) if s.kind == "attention" and s.path in converted]
    if left:
        raise RewriteError(f"softmax attention is left in {', '.join(left)}, which the plan converts")


def _as_calls(inputs: Sequence[Call] | tuple[int, ...]) -> list[Call]:
    if inputs and isinstance(inputs[0], int):
        return [((torch.empty(inputs, device="meta"),), {})]  # type: ignore[arg-type]
    return list(inputs)  # type: ignore[arg-type]


def random_call(args: tuple[Any, ...], kwargs: dict[str, Any], *, like: nn.Module) -> Call:
    """The recorded call with normal values in its floating tensors; integers become zeros, the last flag is set.

    Arguments that were one tensor stay one: some forwards ask whether they are.
    """
    reference = next((p for p in like.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(_SEED)
    made: dict[int, Tensor] = {}

    def fill(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = _filled(tensor, generator, reference)
        return made[id(tensor)]

    filled: Call = pytree.tree_map_only(Tensor, fill, (args, kwargs))
    return filled


def _filled(tensor: Tensor, generator: torch.Generator, reference: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator).to(reference)
    filled = torch.zeros(tensor.shape, dtype=tensor.dtype, device=reference.device)
    if tensor.dtype == torch.bool and tensor.dim() and tensor.shape[-1] > 1:
        filled[..., -1] = True
    return filled


@torch.no_grad()
def run_calls(owner: nn.Module, calls: Sequence[Call], *, training: bool) -> list[Tensor]:
    """Returns the outputs of calls in one mode under one seed."""
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
        child.training = training and (child is module or isinstance(child, nn.Dropout | InlineMlp))
    try:
        yield
    finally:
        for child, flag in flags:
            child.training = flag


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are equal to the last bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _same_in_double(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors differ by no more than rounding does in double precision."""
    return len(first) == len(second) and all(
        torch.allclose(a.double(), b.double(), rtol=_ROUNDING, atol=_ROUNDING)
        for a, b in zip(first, second, strict=True)
    )
