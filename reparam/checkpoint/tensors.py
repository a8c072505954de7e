"""A model's tensors as a file can hold them: contiguous, each memory once, nothing that needs pickle."""

import itertools

from torch import Tensor, nn

from reparam.errors import CheckpointError
from reparam.models.state import aliases, on_meta


def file_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors to write, and for each name left out the name whose tensor it shares.

    Tensors that can be written as they are, are not copied.

    Raises:
        CheckpointError: a tensor without data, tensors that overlap without being equal, or state that is no tensor.
    """
    state = model.state_dict()
    if foreign := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{foreign[0]} is no tensor but extra state, which only pickle could write. Drop it.")
    if empty := on_meta(model):
        raise CheckpointError(f"{len(empty)} tensors have no data, {empty[0]} among them. Load weights before saving.")
    tied = aliases(state)
    tensors = {name: tensor.detach() for name, tensor in state.items() if name not in tied}
    _check_overlap(tensors)
    return _separate(tensors), tied


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies what is not contiguous or lies in one storage with another tensor: the file format holds neither."""
    residents: dict[int, int] = {}
    for tensor in tensors.values():
        residents[_storage(tensor)] = residents.get(_storage(tensor), 0) + 1
    return {
        name: tensor.clone() if tensor.numel() and residents[_storage(tensor)] > 1 else tensor.contiguous()
        for name, tensor in tensors.items()
    }


def _check_overlap(tensors: dict[str, Tensor]) -> None:
    spans = sorted((_storage(t), *_span(t), name) for name, t in tensors.items() if t.numel())
    for (storage, _, end, name), (next_storage, start, _, next_name) in itertools.pairwise(spans):
        if storage == next_storage and start < end:
            raise CheckpointError(
                f"{name} and {next_name} share a part of their memory, which a file cannot hold. Make one a copy."
            )


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte and the byte after the last, within the storage."""
    first = int(tensor.storage_offset()) * tensor.element_size()
    reach = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (reach + 1) * tensor.element_size()
