"""A converted model in the bits that its weights have, as tensors for a file, and back.

    PATH.weight.codes    uint8: the weights of the shift layer at PATH (`ops/shift_packing.py`); PATH.offset stays
    PATH.weight.zeros    int32: positions of zeros, where the layer has no code for zero and yet holds some
    NAME.int8, .scale    a multiply expert's weight (O, ...): int8 and a float32 (O, 1, ...), NAME = int8 * scale
    NAME.mask            uint8: a bool tensor, one bit an element
    NAME                 every other tensor: parameters in the float that was asked for, buffers as they are

A parameter that the narrower float cannot hold stays as it is: one whose rounding error is beyond what the float's
mantissa explains, because its values overflow or are so small that they lose their digits.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from reparam.checkpoint.record import Packed
from reparam.checkpoint.tensors import file_tensors
from reparam.errors import CheckpointError
from reparam.modes import evaluating
from reparam.ops.adder_layer import AdderLayer
from reparam.ops.bit_packing import pack_codes, packed_bytes, unpack_codes
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.shift_layer import ShiftLayer
from reparam.ops.shift_packing import PackedShift, pack_shift, unpack_shift

Float = Literal["float16", "bf16", "float32"]
Kind = Literal["shift weights", "multiply experts", "adder weights", "other parameters", "buffers"]
FLOATS = {"float16": torch.float16, "bf16": torch.bfloat16, "float32": torch.float32}
_RESTORE = "Export it again, or restore a copy."


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What one or, of a shift layer, several tensors of the model (`names`) became: `tensors`, by name in the file.

    `form` is in words: "4 bits", "float16"; `before` counts the bytes of the model's own tensors. `misfit` says that
    the float asked for could not hold it.
    """

    names: tuple[str, ...]
    kind: Kind
    form: str
    before: int
    tensors: Mapping[str, Tensor]
    misfit: bool = False

    @property
    def after(self) -> int:
        """Bytes in the file."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTensors:
    """A packed model: how each tensor is stored, the record that unpacks them, and names that share a tensor."""

    stored: tuple[Stored, ...]
    record: Packed
    tied: Mapping[str, str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the file."""
        return {name: tensor for one in self.stored for name, tensor in one.tensors.items()}


def pack_tensors(model: nn.Module, *, floats: Float = "float16", experts: Float | Literal["int8"]) -> PackedTensors:
    """Packs a converted model's tensors.

    Args:
        floats: of parameters that are no shift weights.
        experts: of the weights of multiply experts.
    Raises:
        CheckpointError: as for `file_tensors`.
    """
    state, tied = file_tensors(model)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, ShiftLayer)}
    shift, stored = {}, list[Stored]()
    with evaluating(model):  # in training, stochastic rounding would draw
        for path, layer in layers.items():
            shift[path], one = _shift(path, layer, state)
            stored.append(one)
    kinds, done = _kinds(model), {name for one in stored for name in one.names}
    for name, tensor in state.items():
        if name not in done:
            kind = kinds.get(name, "buffers")
            stored.append(_plain(name, tensor, kind, experts if kind == "multiply experts" else floats))
    made = {name for one in stored for name in one.tensors}
    int8, masks = ([name for name in state if f"{name}.{suffix}" in made] for suffix in ("int8", "mask"))
    record = Packed(shift=shift, int8=tuple(int8), masks={name: tuple(state[name].shape) for name in masks})
    return PackedTensors(stored=tuple(stored), record=record, tied=tied)


def unpack_tensors(
    tensors: Mapping[str, Tensor], record: Packed, *, where: Path, like: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Returns a model's tensors by their own names.

    Args:
        tensors: those of the file.
        record: how they were packed.
        where: the file, for messages.
        like: tensors whose types floats take; those without one keep the type that they have in the file.
    Raises:
        CheckpointError: a packed tensor that is missing or does not fit the record.
    """
    rest = dict(tensors)

    def take(name: str) -> Tensor:
        if name not in rest:
            raise CheckpointError(f"{where}: there is no tensor {name}, which config.json wants. {_RESTORE}")
        return rest.pop(name)

    state: dict[str, Tensor] = {}
    for path, form in record.shift.items():
        name = _join(path, "weight")
        stream, zeros, offset = take(f"{name}.codes"), rest.pop(f"{name}.zeros", None), take(_join(path, "offset"))
        try:
            parameters = unpack_shift(form, stream, offset, zeros=zeros)
        except ValueError as fault:
            raise CheckpointError(f"{where}: {name} is damaged: {fault}. {_RESTORE}") from fault
        state |= {_join(path, leaf): tensor for leaf, tensor in parameters.items()} | {_join(path, "offset"): offset}
    for name in record.int8:
        state[name] = _scaled(name, take(f"{name}.int8"), take(f"{name}.scale"), where=where)
    for name, shape in record.masks.items():
        state[name] = _mask(name, take(f"{name}.mask"), shape, where=where)
    return {name: _as_in(like or {}, name, tensor) for name, tensor in (state | rest).items()}


def _shift(path: str, layer: ShiftLayer, state: Mapping[str, Tensor]) -> tuple[PackedShift, Stored]:
    form, codes, zeros = pack_shift(layer)
    names, weight = tuple(_join(path, leaf) for leaf in form.trains), _join(path, "weight")
    tensors = {f"{weight}.codes": codes} | ({f"{weight}.zeros": zeros} if len(zeros) else {})
    terms = f"{form.terms} x " if form.terms > 1 else ""
    before = sum(state[name].nbytes for name in names)
    return form, Stored(
        names=names, kind="shift weights", form=f"{terms}{form.bits} bits", before=before, tensors=tensors
    )


def _plain(name: str, tensor: Tensor, kind: Kind, wanted: str) -> Stored:
    def stored(form: str, misfit: bool = False, **tensors: Tensor) -> Stored:
        named = {f"{name}.{suffix}" if suffix != "itself" else name: value for suffix, value in tensors.items()}
        return Stored(names=(name,), kind=kind, form=form, before=tensor.nbytes, tensors=named, misfit=misfit)

    if tensor.dtype == torch.bool and tensor.ndim:
        return stored("1 bit", mask=pack_codes(tensor, bits=1))
    if kind == "buffers" or not tensor.is_floating_point():
        return stored(_type_name(tensor), itself=tensor)
    if wanted == "int8":
        values, scale = _to_int8(tensor)
        return stored("int8", int8=values, scale=scale)
    dtype = FLOATS[wanted]
    if dtype.itemsize >= tensor.dtype.itemsize:
        return stored(_type_name(tensor), itself=tensor)
    narrow = tensor.to(dtype)
    fits = _loses_only_digits(tensor, narrow)
    return stored(wanted, itself=narrow) if fits else stored(_type_name(tensor), misfit=True, itself=tensor)


def _loses_only_digits(tensor: Tensor, narrow: Tensor) -> bool:
    wide = tensor.double()
    error = torch.linalg.vector_norm(narrow.double() - wide)
    return bool(error <= torch.finfo(narrow.dtype).eps * torch.linalg.vector_norm(wide))


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest multiples of one scale for each output channel, its largest weight / 127."""
    wide = weight.float()
    largest = wide.abs().amax(dim=tuple(range(1, wide.ndim)), keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest / 127)
    return torch.round(wide / scale).to(torch.int8), scale


def _scaled(name: str, values: Tensor, scale: Tensor, *, where: Path) -> Tensor:
    if values.ndim != scale.ndim or scale.numel() != len(values):
        raise CheckpointError(f"{where}: {name} is damaged: its int8 values and scales do not fit. {_RESTORE}")
    return values.float() * scale


def _mask(name: str, stream: Tensor, shape: tuple[int, ...], *, where: Path) -> Tensor:
    count = math.prod(shape)
    if stream.shape != (packed_bytes(count, bits=1),):
        raise CheckpointError(f"{where}: {name} is damaged: its mask is not of {count} bits. {_RESTORE}")
    return unpack_codes(stream, bits=1, count=count).bool().view(shape)


def _as_in(like: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    return tensor.to(like[name].dtype) if name in like and tensor.is_floating_point() else tensor


def _kinds(model: nn.Module) -> dict[str, Kind]:
    """What each parameter is, by name; the others are buffers."""
    special: dict[int, Kind] = {id(parameter): "multiply experts" for parameter in _expert_weights(model)}
    special |= {id(m.weight): "adder weights" for m in model.modules() if isinstance(m, AdderLayer)}
    return {
        name: special.get(id(parameter), "other parameters")
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def _expert_weights(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, RoutedLayer) or (isinstance(module, MoeMlp) and not module.form.mixes_tokens):
            for layer, _ in module.expert_layers():
                assert isinstance(layer.weight, Tensor)
                yield layer.weight


def _type_name(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return {"bfloat16": "bf16"}.get(name, name)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
