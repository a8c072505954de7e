"""Parameters, gradients and optimiser states shared out over processes (FSDP2), and whole values put together again.

Each process holds a slice of every parameter. A unit, such as a transformer block, is gathered when its forward or
backward comes and let go behind it; its gradients are averaged and sliced at once. What is saved is whole, so it has
the form that one process gives it and any number of processes can load it.

Source: torch.distributed.fsdp.fully_shard.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.utils import _pytree as pytree

from reparam.copying import copy_with, to_meta
from reparam.errors import DataError, OptionError
from reparam.ops.base import Operator
from reparam.processes import broadcast_from_main_, process_count, sum_over_processes_
from reparam.recipe.settings import TrainSettings

#: A unit holds at most this share of the parameters where the model has lists to split it by.
_LARGEST_UNIT = 1 / 8


def check_sharding(settings: TrainSettings) -> None:
    """Raises OptionError where `fsdp` is asked for and there is one process."""
    if settings.fsdp and process_count() == 1:
        raise OptionError(
            "fsdp shares a model out over processes, and there is only one; start several, as in "
            "torchrun --nproc-per-node 4 -m reparam_cli finetune ..., or leave fsdp out"
        )


def shard_(model: nn.Module) -> None:
    """Leaves each process its slice of the model, which is the first process's model; modules and names stay.

    The model must be on its device, and must not be copied afterwards. Buffers stay whole.

    Raises:
        OptionError: a parameter without dimensions, which has no slices.
    """
    scalars = [name for name, parameter in model.named_parameters() if not parameter.ndim]
    if scalars:
        raise OptionError(f"fsdp: parameter {scalars[0]} has no dimension to be sliced along; leave fsdp out")
    broadcast_from_main_([*model.parameters(), *model.buffers()])
    mesh = init_device_mesh(next(model.parameters()).device.type, (process_count(),))
    for unit in (*units(model), model):
        fully_shard(unit, mesh=mesh)


def units(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that are gathered one at a time: blocks of a list, the largest that hold an eighth at most.

    What belongs to none, such as the embedding and the head, stays gathered from forward to backward. Only modules in
    lists are taken, which a model calls; of others it may read the weights itself.
    """
    most = _LARGEST_UNIT * sum(parameter.numel() for parameter in model.parameters())
    owners: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    shared = {parameter for parameter, count in owners.items() if count > 1}
    return _units_in(model, most=most, shared=shared, is_list=False)


def _units_in(module: nn.Module, *, most: float, shared: set[nn.Parameter], is_list: bool) -> Iterator[nn.Module]:
    for child in module.children():
        own = list(child.parameters())
        if not own or isinstance(child, Operator):
            continue
        nests = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        is_block = is_list and not nests and any(True for _ in child.children()) and shared.isdisjoint(own)
        if is_block and sum(parameter.numel() for parameter in own) <= most:
            yield child
        else:
            found = list(_units_in(child, most=most, shared=shared, is_list=nests))
            yield from found or ([child] if is_block else [])


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard_` has been here."""
    return isinstance(model, FSDPModule)


def gathered(values: Any, *, is_wanted: bool = True) -> Any:
    """Nested values with each slice replaced by the whole tensor on the CPU; every process must ask together.

    A process for which they are not wanted takes part, and gets None in the place of each.
    """

    def whole(part: Any) -> Tensor | None:
        tensor: Tensor = part.full_tensor()
        return tensor.detach().cpu() if is_wanted else None

    return pytree.tree_map_only(DTensor, whole, values)


def load_state_(part: Any, state: Mapping[str, Any]) -> None:
    """Gives a part of a training its state dictionary of whole tensors, of which a sharded part takes its slices.

    Args:
        part: a model, an optimiser, or anything with `load_state_dict`.
        state: as `gathered`, or a process alone, made it.
    Raises:
        KeyError, RuntimeError, ValueError: the state of something else.
    """
    if isinstance(part, nn.Module) and is_sharded(part):
        now = part.state_dict()
        state = {name: _shared_out(value, like=now.get(name)) for name, value in state.items()}
    elif isinstance(part, torch.optim.Optimizer):
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        moments = {i: _moments(own, like=parameters[i]) for i, own in state["state"].items() if i < len(parameters)}
        state = {**state, "state": moments}
    part.load_state_dict(state)


class WholeModel:
    """A copy of a model, made before it is sharded, that takes whole tensors in again to be saved or looked at."""

    def __init__(self, model: nn.Module) -> None:
        self._empty = copy_with(model, parameter=to_meta, buffer=lambda buffer: buffer.to("cpu", copy=True))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._tied = {
            name: names[id(parameter)]
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if names[id(parameter)] != name
        }

    def of(self, model: nn.Module, *, is_wanted: bool = True) -> nn.Module:
        """The model, or another one of the same form, in one piece on the CPU; every process must ask together.

        The next call changes the one that is returned. A process for which it is not wanted gets one without weights.
        """
        state = gathered(model.state_dict(), is_wanted=is_wanted)
        if not is_wanted:
            return self._empty
        self._empty.load_state_dict(state, assign=True)
        for name, kept in self._tied.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self._empty.get_submodule(owner), leaf, self._empty.get_parameter(kept))
        return self._empty.train(model.training)


class InStep:
    """Batches for forwards of a sharded model, in which all processes must take part until the last one is done.

    A context manager: on exit, a process that has run out of batches joins in the forwards of the others, with images
    that it has seen and outputs that nobody reads. Any other model's batches pass through.

    Raises:
        DataError: a process has no batch at all.
    """

    def __init__(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, device: torch.device) -> None:
        self._model, self._batches, self._device = model, batches, device
        self._last: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self._batches:
            if is_sharded(self._model):
                self._count_those_who_go_on(True)
                self._last = images[:1]
            yield images, targets

    def __enter__(self) -> "InStep":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and is_sharded(self._model):
            while self._count_those_who_go_on(False):
                self._model(self._last)

    def _count_those_who_go_on(self, goes_on: bool) -> int:
        count = int(sum_over_processes_(torch.tensor(int(goes_on), device=self._device)))
        if self._last is None and 0 < count < process_count():
            raise DataError(
                f"only {count} of {process_count()} processes have images to evaluate, and with fsdp each needs one; "
                "start fewer processes, or leave fsdp out"
            )
        return count


def _shared_out(value: Tensor, *, like: Tensor | None) -> Tensor:
    """This process's slice of a whole tensor, cut as `like` is; a statistic of another shape is held whole."""
    if not isinstance(like, DTensor):
        return value
    placements: Sequence[Any] = like.placements if value.shape == like.shape else [Replicate()] * like.device_mesh.ndim
    return distribute_tensor(value.to(like.device), like.device_mesh, placements, src_data_rank=None)


def _moments(state: Mapping[str, Any], *, like: Tensor) -> dict[str, Any]:
    """What an optimiser knows about one parameter; counts of steps are whole everywhere."""
    return {
        name: _shared_out(value, like=like) if isinstance(value, Tensor) and value.ndim else value
        for name, value in state.items()
    }
