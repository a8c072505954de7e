"""Where a model's weights come from, that they fit, and a digest that identifies them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import timm
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from reparam.errors import WeightsError
from reparam.models.build import build_model
from reparam.models.factory import call_factory
from reparam.models.hub import hub_access, in_plain_words
from reparam.models.spec import ModelSpec
from reparam.models.state import aliases, assign_, on_meta, put_
from reparam.models.weights_file import read_safetensors

_ADVICE = "Give --weights FILE.safetensors, or --weights none for random weights."


class WeightsRecord(BaseModel):
    """Where a dense model's weights came from, and the digest of what was loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["hub", "none", "file", "local-dir", "factory", "given"]
    source: str | None = None
    sha256: str


def load_weights(model: nn.Module, spec: ModelSpec, weights: str) -> WeightsRecord:
    """Puts weights into `model`, in place; a model from `build_empty` needs the least memory.

    Args:
        model: the dense module of `spec`, on the CPU, or with tensors on the meta device.
        weights: "hub" for the pretrained weights that belong to the spec (timm adapts head, stem and position
            embedding to the spec's arguments; for `local-dir:` the folder's own, for `file.py:factory` what the factory
            made), "none" for random ones, or the path of a .safetensors file, whose names and shapes must fit exactly;
            floats of other types are converted.

    Raises:
        WeightsError: unreachable hub, no pretrained weights, a broken file, or names and shapes that do not fit.
    """
    if weights == "none":
        record = _random(model, spec)
    elif weights == "hub":
        record = _pretrained(model, spec)
    else:
        record = _from_file(model, Path(weights))
    return record


def given_weights(model: nn.Module) -> WeightsRecord:
    """The record of a module that came with its weights.

    Raises:
        WeightsError: some tensor is on the meta device and so has no data.
    """
    return _record(model, kind="given")


def weights_digest(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _random(model: nn.Module, spec: ModelSpec) -> WeightsRecord:
    if on_meta(model):
        _adopt(model, build_model(spec))
    return _record(model, kind="none")


def _pretrained(model: nn.Module, spec: ModelSpec) -> WeightsRecord:
    if spec.source == "module":
        return given_weights(model)
    if spec.source == "file":
        _adopt(model, call_factory(spec.name, spec.kwargs))
        return _record(model, kind="factory", source=spec.name)
    if spec.source == "reparam":
        raise WeightsError(f'model "{spec.name}" has no pretrained weights. {_ADVICE}')
    origin = _origin(spec)
    access = in_plain_words if spec.source == "local-dir" else hub_access
    with access(f'weights of "{spec.name}" from {origin}', error=WeightsError, advice=_ADVICE):
        donor = _donor(spec)
    _adopt(model, donor)
    return _record(model, kind="local-dir" if spec.source == "local-dir" else "hub", source=origin)


def _donor(spec: ModelSpec) -> nn.Module:
    """The pretrained model as timm itself loads it: only timm knows each family's filters and how to adapt a head."""
    with torch.device("cpu"):
        if spec.source == "timm":
            return timm.create_model(spec.name, pretrained=True, pretrained_cfg=spec.pretrained_cfg, **spec.kwargs)
        return timm.create_model(f"{spec.source}:{_origin(spec)}", pretrained=True, **spec.kwargs)


def _origin(spec: ModelSpec) -> str:
    cfg = spec.pretrained_cfg
    keys = ("file",) if spec.source == "local-dir" else ("hf_hub_id", "url", "file")
    return next((str(cfg[key]) for key in keys if cfg.get(key)), "timm, which has none")


def _from_file(model: nn.Module, path: Path) -> WeightsRecord:
    path = path.expanduser().resolve()
    tensors = read_safetensors(path, error=WeightsError, advice=_ADVICE)
    own = model.state_dict()
    tensors, tied = _one_per_tie(_in_types_of(own, tensors), aliases(own), where=path)
    assign_(model, tensors, tied=tied, where=str(path), error=WeightsError, advice="Was it made for another model?")
    return _record(model, kind="file", source=str(path))


def _in_types_of(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Brings floats into the model's own types, for files are often kept in half precision."""
    return {
        name: tensor.to(own[name].dtype)
        if name in own and tensor.is_floating_point() and own[name].is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }


def _one_per_tie(
    tensors: dict[str, Tensor], shared: Mapping[str, str], *, where: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Keeps one name of each tensor that the model shares: files may hold all its names, or any one of them."""
    tied: dict[str, str] = {}
    for name, first in shared.items():
        kept, other = (first, name) if first in tensors else (name, first)
        tied[other] = kept
        if other in tensors and not torch.equal(tensors.pop(other), tensors[kept]):
            raise WeightsError(f"{where}: {name} and {first} are one tensor in the model, but differ in the file.")
    return tensors, tied


def _adopt(model: nn.Module, donor: nn.Module) -> None:
    """Takes over every tensor of `donor`, which the caller gives up."""
    state = donor.state_dict()
    tied = aliases(state)
    tensors = {name: tensor for name, tensor in state.items() if name not in tied}
    assign_(model, tensors, tied=tied, where="the pretrained model", error=WeightsError, advice=_ADVICE)
    empty = set(on_meta(model))
    for name, buffer in donor.named_buffers():
        if name in empty:
            put_(model, name, buffer)


def _record(
    model: nn.Module,
    *,
    kind: Literal["hub", "none", "file", "local-dir", "factory", "given"],
    source: str | None = None,
) -> WeightsRecord:
    if empty := on_meta(model):
        raise WeightsError(f"{len(empty)} tensors have no data, {empty[0]} among them. {_ADVICE}")
    return WeightsRecord(kind=kind, source=source, sha256=weights_digest(model.state_dict()))
