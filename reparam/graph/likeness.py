"""When two modules are alike but for their weights: what was worked out for one then holds for the other."""

from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from reparam.trace.record import ModuleCall

#: What every module has; the hooks among it are looked at apart.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None))


def likeness(owner: nn.Module, calls: Sequence[ModuleCall]) -> Hashable:
    """Returns a key that is equal for modules of one code, structure, plain attributes, shapes and kinds of calls.

    Attributes that are not plain values count by identity, so a doubt makes modules different.
    """
    return tuple((name, _traits(module)) for name, module in owner.named_modules()), tuple(_call(c) for c in calls)


def _traits(module: nn.Module) -> Hashable:
    own = {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}
    attributes = tuple((key, _trait(value)) for key, value in sorted(own.items()))
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    state = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)
    hooks = tuple(map(id, (*module._forward_hooks.values(), *module._forward_pre_hooks.values())))
    return type(module), attributes, state, hooks


def _trait(value: object) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(_trait(item) for item in value)
    if isinstance(value, dict):
        return "dict", tuple((str(key), _trait(item)) for key, item in value.items())
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.dtype
    return "object", id(value)


def _call(call: ModuleCall) -> Hashable:
    return _trait(call.args), _trait(call.kwargs)
