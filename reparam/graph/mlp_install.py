"""Puts operators in the place of MLPs that stood inline in a forward, after proving that the move changes nothing.

The layers leave their owner: `fc1.weight` becomes `mlp.fc1.weight`, and then what the operator makes of it.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from torch import nn

from reparam.copying import copy_with
from reparam.errors import RewriteError
from reparam.graph.fast_path import slow_path
from reparam.graph.mlp_surgery import InlineMlp, OpenedMlps, open_mlps
from reparam.graph.owner_swap import swap_forward
from reparam.graph.verify import check_operator, random_call, random_weights, run_calls, same_bits, seeded
from reparam.ops.base import Operator, OperatorOptions
from reparam.ops.site import Site
from reparam.trace.record import ModuleCall


def put_mlps(
    owner: nn.Module,
    sites: Mapping[int, Site],
    calls: Sequence[ModuleCall],
    undo: ExitStack,
    *,
    make: Mapping[int, tuple[type[Operator], OperatorOptions]],
    verify: bool,
) -> tuple[str, ...]:
    """Moves the MLPs out of the owner's forward and puts operators in their place.

    Args:
        owner: the module whose forward holds them.
        sites: of the MLPs, by number.
        calls: recorded calls of the owner.
        undo: gets what takes everything back.
        make: the operator class and options, by number.
        verify: prove the move on a copy with random weights, and check each operator in the owner.
    Returns:
        Paths of the modules that left the owner.
    Raises:
        RewriteError: an MLP cannot be taken out, or the proof fails.
    """
    path = sites[min(sites)].path
    forms = {number: site.mlp for number, site in sites.items() if site.mlp}
    opened = open_mlps(owner, calls, path, {number: form.linears for number, form in forms.items()})
    if verify:
        _check_move(owner, calls, opened, path=path)
    undo.callback(_restore, owner, type(owner), _children(owner))
    parts = _move(owner, opened)
    for number, part in parts.items():
        linears = tuple(opened.mlps[number].renamed(name) for name in forms[number].linears)
        form = forms[number].model_copy(update={"linears": linears, "inline": False})
        cls, options = make[number]
        operator = cls.from_dense(part, sites[number].model_copy(update={"mlp": form}), options)
        owner.register_module(opened.mlps[number].name, operator)
        if verify:
            check_operator(owner, operator, [(call.args, call.kwargs) for call in calls], path=path)
    prefix = f"{path}." if path else ""
    return tuple(f"{prefix}{old}" for mlp in opened.mlps.values() for old in mlp.moved if old not in mlp.shared)


def _check_move(owner: nn.Module, calls: Sequence[ModuleCall], opened: OpenedMlps, *, path: str) -> None:
    """The owner with its MLPs moved out must give its own bits, in eval and in training mode under one seed."""
    with seeded():
        stand_in = copy_with(owner, parameter=random_weights)
    made = [random_call(call.args, call.kwargs, like=stand_in) for call in calls]
    moved = copy.deepcopy(stand_in)
    _move(moved, opened)
    for training in (False, True):
        with slow_path():
            outputs = [run_calls(module, made, training=training) for module in (stand_in, moved)]
        if not same_bits(*outputs):
            mode = "training" if training else "evaluation"
            raise RewriteError(
                f'"{path}" ({type(owner).__name__}): with its MLP as a module its output in {mode} mode is not the '
                'original\'s; keep it with a rule operator = "keep"'
            )


def _move(owner: nn.Module, opened: OpenedMlps) -> dict[int, InlineMlp]:
    """Takes the layers out of the owner, into modules that run the lines that leave its forward."""
    parts: dict[int, InlineMlp] = {}
    for number, mlp in opened.mlps.items():
        parts[number] = InlineMlp()
        parts[number].training = owner.training
        for old, new in mlp.moved.items():
            parts[number].register_module(new, owner.get_submodule(old))
        swap_forward(parts[number], mlp.sources)
    for old in {old for mlp in opened.mlps.values() for old in mlp.moved if old not in mlp.shared}:
        parent, _, name = old.rpartition(".")
        delattr(owner.get_submodule(parent), name)
    for number, mlp in opened.mlps.items():
        owner.register_module(mlp.name, parts[number])
    swap_forward(owner, opened.sources)
    return parts


def _children(owner: nn.Module) -> dict[nn.Module, dict[str, nn.Module | None]]:
    return {module: dict(module._modules) for module in owner.modules()}


def _restore(
    owner: nn.Module, own_class: type[nn.Module], children: Mapping[nn.Module, Mapping[str, nn.Module | None]]
) -> None:
    """Undoes a move: the same children under the same names, in their old order."""
    owner.__class__ = own_class
    for module, own in children.items():
        module._modules.clear()
        module._modules.update(own)
