"""From a model's name to its spec, and from its spec to a module: with random weights, or on the meta device."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import timm
import torch
from timm.data.model_config import resolve_input_data_config
from timm.models import resolve_model_input_args
from torch import nn

from reparam.copying import copy_with, to_meta
from reparam.errors import ModelError
from reparam.models.cifar_resnet import CIFAR_RESNETS
from reparam.models.factory import absolute, call_factory, load_factory, takes
from reparam.models.hub import hub_access, in_plain_words
from reparam.models.input_size import check_input_size
from reparam.models.names import resolve_name
from reparam.models.sources import split_source
from reparam.models.spec import ModelSpec, Source, stamp

logger = logging.getLogger(__name__)
_DEFAULT_CHANNELS = 3


def build_spec(
    model: str,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    in_chans: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Describes the model called `model` without making its weights.

    Args:
        model: timm name or shorthand, `hf-hub:org/name`, `local-dir:DIR`, or `file.py:factory`.
        img_size: side of the square images, in pixels; passed to the builder only where the model fixes its size.
        model_kwargs: further arguments of the builder; JSON-able.

    Raises:
        ModelError: unknown name, arguments the model does not take, or an image size it cannot take.
    """
    _check_counts(num_classes=(num_classes, 0), img_size=(img_size, 1), in_chans=(in_chans, 1))
    flags = {"num_classes": num_classes, "in_chans": in_chans}
    kwargs = dict(model_kwargs or {}) | {key: value for key, value in flags.items() if value is not None}
    _check_json(kwargs, model)
    source, name = split_source(model)
    if source == "file":
        return _file_spec(name, kwargs, img_size=img_size)
    if source == "reparam":
        spec = ModelSpec(source=source, name=name, kwargs=kwargs)
        return _with_data(spec, build_model(spec, device="meta"), img_size=img_size, check=img_size is not None)
    resolved = resolve_name(model)
    if resolved.note:
        logger.info(resolved.note)
    return _timm_spec(source, resolved.name, kwargs, img_size=img_size)


def build_model(spec: ModelSpec, *, device: Literal["cpu", "meta"] = "cpu") -> nn.Module:
    """Builds the module of `spec` with random weights on `device`, in training mode; loads nothing.

    Raises:
        ModelError: the builder refuses the arguments, or only the model's owner can build it (source "module").
    """
    if spec.source == "module":
        raise ModelError(f'model "{spec.name}" is a class of your own. Make it yourself and pass the module.')
    with torch.device("cpu"):
        model = _from_file(spec, device) if spec.source == "file" else _from_library(spec, device)
    stamp(model, spec)
    return model


def _timm_spec(source: Source, name: str, kwargs: Mapping[str, Any], *, img_size: int | None) -> ModelSpec:
    access = hub_access if source == "hf-hub" else in_plain_words
    with access(f'model "{name}"', error=ModelError, advice="Check the name."):
        arguments = resolve_model_input_args(name, {"img_size": img_size}, **kwargs)
    architecture, pretrained_cfg = arguments.pop("model_name"), arguments.pop("pretrained_cfg")
    arguments.pop("pretrained_model_args", None)
    _check_json(arguments, name)
    cfg = _with_channels(pretrained_cfg, arguments.get("in_chans"))
    spec = ModelSpec(source=source, name=architecture, kwargs=arguments, pretrained_cfg=cfg)
    return _with_data(spec, build_model(spec, device="meta"), img_size=img_size, check=img_size is not None)


def _with_channels(pretrained_cfg: Mapping[str, Any], channels: int | None) -> dict[str, Any]:
    """Averages mean and std over channels where the model has another number of them, as timm would at each look."""
    cfg = dict(pretrained_cfg)
    for key in ("mean", "std"):
        values = cfg.get(key)
        if channels and values and len(values) != channels:
            cfg[key] = (sum(values) / len(values),) * channels
    return cfg


def _file_spec(name: str, kwargs: Mapping[str, Any], *, img_size: int | None) -> ModelSpec:
    factory = load_factory(name)
    _check_takes(factory, kwargs, name=name)
    arguments = dict(kwargs)
    if img_size is not None and takes(factory, "img_size"):
        arguments["img_size"] = img_size
    spec = ModelSpec(source="file", name=absolute(name), kwargs=arguments)
    model = build_model(spec, device="meta")
    if hasattr(model, "pretrained_cfg"):
        return _with_data(spec, model, img_size=img_size, check=img_size is not None)
    if img_size is None:
        return spec
    size = (arguments.get("in_chans", _DEFAULT_CHANNELS), img_size, img_size)
    check_input_size(model, size, name=name)
    return spec.model_copy(update={"input_size": size})


def _with_data(spec: ModelSpec, model: nn.Module, *, img_size: int | None, check: bool) -> ModelSpec:
    """Adds input size and preprocessing as timm resolves them for the built `model`."""
    try:
        data = resolve_input_data_config(model, args={"img_size": img_size} if img_size else None)
    except (ValueError, AssertionError) as error:
        raise ModelError(f'model "{spec.name}": {error}') from error
    input_size = tuple(data.pop("input_size"))
    if check:
        check_input_size(model, input_size, name=spec.name)
    return ModelSpec(**(spec.model_dump() | {"input_size": input_size, "data": data}))


def _from_library(spec: ModelSpec, device: str) -> nn.Module:
    try:
        with torch.device(device):
            if spec.source == "reparam":
                return CIFAR_RESNETS[spec.name](**spec.kwargs)
            return timm.create_model(spec.name, pretrained=False, pretrained_cfg=spec.pretrained_cfg, **spec.kwargs)
    except Exception as error:
        raise ModelError(f'model "{spec.name}" cannot be built with {spec.kwargs}: {error}') from error


def _from_file(spec: ModelSpec, device: str) -> nn.Module:
    if device == "cpu":
        return call_factory(spec.name, spec.kwargs)
    try:
        with torch.device("meta"):
            return call_factory(spec.name, spec.kwargs)
    except ModelError:  # a factory that reads its own weights or values cannot run there
        return copy_with(call_factory(spec.name, spec.kwargs), parameter=to_meta, buffer=to_meta)


def _check_takes(factory: Callable[..., Any], kwargs: Mapping[str, Any], *, name: str) -> None:
    if foreign := [key for key in kwargs if not takes(factory, key)]:
        raise ModelError(f'model "{name}": the factory takes no argument "{foreign[0]}". Leave it out or add it.')


def _check_json(kwargs: Mapping[str, Any], model: str) -> None:
    for key, value in kwargs.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ModelError(
                f'model "{model}": argument {key}={value!r} cannot be written to JSON. Give it by name, as a string.'
            ) from None


def _check_counts(**given: tuple[int | None, int]) -> None:
    for name, (value, least) in given.items():
        if value is not None and value < least:
            raise ModelError(f"--{name.replace('_', '-')}: wanted at least {least}, got {value}.")
