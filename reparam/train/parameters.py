"""The optimiser and its parameter groups: what weight decay would harm gets none, lower layers may learn slower.

Decay pulls a shift exponent towards 0 and so its weight towards 1, a sign towards the dead zone, and a threshold
towards an arbitrary point; timm's grouping by dimension alone does not see that, hence the operators' own lists.
"""

import glob
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from reparam.errors import OptionError
from reparam.ops.base import Operator
from reparam.ops.routing import Router
from reparam.recipe.settings import TrainSettings
from reparam.suggest import did_you_mean

#: torch's optimisers whose fused form does all parameters in one kernel, on a CPU too; timm's own have none.
_FUSED = frozenset({"adam", "adamw"})
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def no_decay_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that get no weight decay.

    These are parameters of at most one dimension, biases, norms, what the model's own `no_weight_decay()` names, and
    what each `Operator` and `Router` lists in `no_decay`.
    """
    own = _no_weight_decay_of(model)
    names = {name for name, p in model.named_parameters() if p.ndim <= 1 or name.endswith("bias") or name in own}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, _NORMS):
            names |= {f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)}
        if isinstance(module, Operator | Router):
            names |= {f"{prefix}{name}" for name in module.no_decay}
    return frozenset(names)


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Returns optimiser groups of the trainable parameters; every one is in exactly one group.

    Args:
        model: not wrapped, for the names are matched.
        weight_decay: of the parameters that `no_decay_names` does not list.
        layer_decay: factor on the learning rate from one layer to the one below, through the model's `group_matcher`.
    Raises:
        OptionError: layer decay for a model that has no `group_matcher`.
    """
    # timm matches names as patterns; a literal name must not act as one.
    spared = [glob.escape(name) for name in sorted(no_decay_names(model))]
    if layer_decay is None:
        return list(param_groups_weight_decay(model, weight_decay, no_weight_decay_list=spared))
    if not hasattr(model, "group_matcher"):
        raise OptionError(
            f"layer_decay = {layer_decay}: {type(model).__name__} does not say which layer a parameter belongs to "
            "(no group_matcher); leave layer_decay out"
        )
    return list(param_groups_layer_decay(model, weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay))


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Returns timm's optimiser `settings.opt` over `parameter_groups`; raises OptionError where it cannot."""
    known = [str(name) for name in list_optimizers()]
    if settings.opt not in known:
        raise OptionError(f'unknown optimiser "{settings.opt}".{did_you_mean(settings.opt, known)}')
    options: dict[str, Any] = {"fused": True} if settings.opt in _FUSED else {}

    def groups(unwrapped: nn.Module) -> list[dict[str, Any]]:
        return parameter_groups(unwrapped, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay)

    try:
        return create_optimizer_v2(
            model, opt=settings.opt, lr=settings.lr, momentum=settings.momentum, param_group_fn=groups, **options
        )
    except ValueError as error:
        raise OptionError(f'opt = "{settings.opt}": {error}') from error


def _no_weight_decay_of(model: nn.Module) -> frozenset[str]:
    own = getattr(model, "no_weight_decay", None)
    return frozenset(own()) if callable(own) else frozenset()
