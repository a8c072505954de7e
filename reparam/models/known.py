"""The spec of a module that exists already: timm's own record of how it was built, if it still tells the truth."""

from typing import Any

from timm.data.model_config import resolve_input_data_config
from timm.models import get_model_args, is_model
from torch import nn

from reparam.errors import ModelError
from reparam.models.build import build_model
from reparam.models.spec import ModelSpec, stamped


def spec_of(model: nn.Module) -> ModelSpec:
    """Returns the spec that builds a module like `model`, or one of source "module" when nothing reliable is known.

    A spec is believed only if the module it builds has the same submodules, types, names and shapes.
    """
    for spec in (_timm_spec(model), stamped(model)):
        if spec is not None and _builds_alike(spec, model):
            return spec
    return module_spec(model)


def module_spec(model: nn.Module) -> ModelSpec:
    """The spec of a module that only its owner can build."""
    return ModelSpec(source="module", name=f"{type(model).__module__}.{type(model).__qualname__}")


def is_timm(model: nn.Module) -> bool:
    """Whether timm built `model` and could write it down."""
    cfg = getattr(model, "pretrained_cfg", None)
    return isinstance(cfg, dict) and is_model(str(cfg.get("architecture"))) and hasattr(model, "num_features")


def _timm_spec(model: nn.Module) -> ModelSpec | None:
    if not is_timm(model):
        return None
    attributes: dict[str, Any] = vars(model)
    cfg = {key: value for key, value in attributes["pretrained_cfg"].items() if key != "state_dict"}
    kwargs = attributes.get("_model_args", {}) | get_model_args(model)  # the public call leaves out drop rates
    data = resolve_input_data_config(model)
    input_size = _size_built_for(model, tuple(data.pop("input_size")), kwargs)
    try:
        return ModelSpec(
            source="timm", name=cfg["architecture"], kwargs=kwargs, input_size=input_size, data=data, pretrained_cfg=cfg
        )
    except ValueError:  # an argument that JSON cannot hold, such as a layer class
        return None


def _size_built_for(model: nn.Module, of_weights: tuple[int, int, int], kwargs: dict[str, Any]) -> tuple[int, int, int]:
    """The input size that was asked for when the model was built: timm forgets it where the model takes every size."""
    noted = stamped(model)
    if noted is None or noted.input_size is None or "img_size" in kwargs:
        return of_weights
    return noted.input_size if noted.input_size[0] == of_weights[0] else of_weights


def _builds_alike(spec: ModelSpec, model: nn.Module) -> bool:
    try:
        return _outline(build_model(spec, device="meta")) == _outline(model)
    except ModelError:
        return False


def _outline(model: nn.Module) -> tuple[object, ...]:
    modules = [(name, type(module).__module__, type(module).__qualname__) for name, module in model.named_modules()]
    return modules, {name: tensor.shape for name, tensor in model.state_dict().items()}
