"""Which modules a path, a parameter's name or a pattern stands for."""

import re

from torch import nn

from reparam.errors import ModelError
from reparam.graph.plan_index import records_of
from reparam.graph.records import Plan
from reparam.graph.selector import path_matches
from reparam.suggest import did_you_mean

_PATTERN = re.compile(r"re:|[^*?\[]*[*?\[]")


def find_modules(model: nn.Module, plan: Plan, asked: str) -> list[str]:
    """Returns the paths of the modules that `asked` stands for, in the order of the module tree; at least one.

    A parameter or buffer stands for the module that holds it, a further name of a shared module for its first.

    Raises:
        ModelError: there are none, and the message names close ones; or the expression of a pattern cannot be read.
    """
    known = _names(model, plan)
    if asked in known:
        return [known[asked]]
    if _PATTERN.match(asked):
        _check_expression(asked)
        modules = [path for name, path in known.items() if name == path and path_matches(asked, path)]
        found = modules or [path for name, path in known.items() if path_matches(asked, name)]
        if found:
            return list(dict.fromkeys(found))
    raise ModelError(_not_found(model, asked, known))


def _check_expression(asked: str) -> None:
    if asked.startswith("re:"):
        try:
            re.compile(asked.removeprefix("re:"))
        except re.error as error:
            raise ModelError(f'"{asked}" is no regular expression: {error}') from None


def _names(model: nn.Module, plan: Plan) -> dict[str, str]:
    """Each name and the path of the module it stands for: modules first, then what the plan lists, then tensors."""
    first = {id(module): path for path, module in model.named_modules()}
    names = {path: first[id(module)] for path, module in model.named_modules(remove_duplicate=False)}
    for stage in plan.stages:
        for record in records_of(stage):
            names.setdefault(record.site.path, record.site.path)
    owned = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, _ in owned:
        names.setdefault(name, names[name.rpartition(".")[0]])
    return names


def _not_found(model: nn.Module, asked: str, known: dict[str, str]) -> str:
    wanted = "module that fits" if _PATTERN.match(asked) else "module or parameter"
    hint = did_you_mean(asked, known) or f" At its top: {', '.join(name for name, _ in model.named_children())}."
    return f'{type(model).__name__} has no {wanted} "{asked}".{hint}'
