"""The grammar of `--set`: `stage.0.rule.2.options.bits=4` changes one value of a recipe.

    override = path "=" value
    path     = key { "." (key | index) }     stage.0.finetune.epochs, stage.1.rule.0.match.path
    value    = a TOML value | a bare word    4, 1e-4, true, [0.6, 0.4], "a b", sign, blocks.*

A key that a rule does not have falls through to its options: `stage.0.rule.2.bits=4` is the path above. Overrides are
applied in order to a valid recipe; the result is validated as a whole, and each fault names the override that made it.
"""

import tomllib
from collections.abc import Sequence
from typing import Any

from reparam.errors import RecipeError
from reparam.recipe.faults import Fault, Location, parse_table
from reparam.recipe.schema import Recipe, Rule

_PYTHON_NAMES = {"stages": "stage", "rules": "rule"}
_RULE_KEYS = frozenset(field.alias or name for name, field in Rule.model_fields.items())


def apply_overrides(recipe: Recipe, overrides: Sequence[str], *, label: str) -> Recipe:
    """Returns the recipe with every override applied.

    Args:
        recipe: a valid recipe; it stays as it is.
        overrides: texts of the form `path=value`.
        label: what messages call the recipe.

    Raises:
        RecipeError: an override without "=", a path that leads nowhere, or a value that does not fit; all at once.
    """
    table = recipe.model_dump(by_alias=True)
    placed: dict[str, Location] = {}
    lines: list[str] = []
    for override in overrides:
        try:
            placed[override] = _apply_(table, override)
        except RecipeError as error:
            lines.append(f'{label}, override "{override}": {error}')
    result = parse_table(table)
    if isinstance(result, Recipe):
        if not lines:
            return result
    else:
        lines += [_blame(fault, placed, label=label) for fault in result]
    raise RecipeError("\n".join(lines))


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Splits `path=value` into the path's parts and the value; raises RecipeError for a text of another form."""
    path, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in path.split("."))
    if not equals or not all(parts):
        raise RecipeError("wanted path=value, such as stage.0.rule.0.options.bits=4")
    return parts, _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    if not text:
        raise RecipeError('no value after "="; an empty string is written ""')
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {}
    if parsed.keys() == {"value"}:
        return parsed["value"]
    if text[0] in "[{\"'":
        raise RecipeError(f"{text} is not a TOML value; is a bracket or a quote left open?")
    return text


def _apply_(table: dict[str, Any], override: str) -> Location:
    """Writes one override into the table and returns where it went."""
    parts, value = parse_override(override)
    here: Any = table
    location: Location = ()
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        if _is_rule(location) and part not in _RULE_KEYS:
            here, location = here["options"], (*location, "options")
        key = _step(here, part, location)
        location = (*location, key)
        if is_last:
            _write_(here, key, value, location)
        else:
            here = here[key] if isinstance(key, int) else here.setdefault(key, {})
    return location


def _is_rule(location: Location) -> bool:
    return len(location) == 4 and location[::2] == ("stage", "rule")


def _step(here: Any, part: str, location: Location) -> str | int:
    """Returns the key or index that one part of a path means inside `here`."""
    if isinstance(here, dict):
        return _PYTHON_NAMES.get(part, part) if len(location) in (0, 2) else part
    if not isinstance(here, list | tuple):
        raise RecipeError(f"{_spell(location)} is no table but {here!r}, so it has no {part!r}")
    if not part.isdecimal() or int(part) >= len(here):
        raise RecipeError(f"there is no {_spell((*location, part))}; {_what_exists(here, location)}")
    return int(part)


def _write_(here: Any, key: str | int, value: Any, location: Location) -> None:
    if isinstance(here, dict):
        here[key] = value
        return
    example = "finetune.epochs=3" if len(location) == 2 else "bits=4" if len(location) == 4 else None
    hint = (
        f"set one of its keys, such as {_spell(location)}.{example}"
        if example
        else f"set all of {_spell(location[:-1])}"
    )
    raise RecipeError(f"{_spell(location)} is one item of a list; {hint}")


def _what_exists(items: Sequence[Any], location: Location) -> str:
    if not items:
        return f"{_spell(location)} is empty"
    names = [item.get("name") or item.get("operator") for item in items if isinstance(item, dict)]
    listed = [f"{i} ({name})" for i, name in enumerate(names)] or [str(i) for i in range(len(items))]
    return f"{_spell(location)} has {', '.join(listed)}"


def _blame(fault: Fault, placed: dict[str, Location], *, label: str) -> str:
    """Describes a fault with the last override that wrote at, above or below its place."""
    for override, location in reversed(placed.items()):
        shared = min(len(location), len(fault.location))
        if location[:shared] == fault.location[:shared]:
            return f'{label}, override "{override}": {_spell(fault.location)}: {fault.message}'
    return fault.describe(label)


def _spell(location: Location) -> str:
    return ".".join(str(part) for part in location)
