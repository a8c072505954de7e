"""What is wrong with a recipe's table, all of it at once: where each fault lies, what was wanted, what was got."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from reparam.recipe.resolve import setting_faults, shorten
from reparam.recipe.schema import OPERATOR_KEEP, Match, Recipe, Rule, Stage
from reparam.recipe.settings import SETTING_NAMES
from reparam.suggest import did_you_mean

Location = tuple[str | int, ...]

_TABLES: dict[str, type[BaseModel]] = {"stage": Stage, "rule": Rule, "match": Match}
_ALIASES = {"stages": "stage", "rules": "rule"}
_DEEPEST = 16
_LARGEST = 2**63
#: Names become folders of a run, so they may not climb out of it.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")
_QUOTED = re.compile(r"'([^']+)'")
_MOST_LINES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong: `location` is the way through the tables, such as ("stage", 0, "rule", 2, "operatr")."""

    location: Location
    message: str

    def describe(self, file: str) -> str:
        """Returns `file.toml, stage 0, rule 2, key "operatr": unknown key. Did you mean "operator"?`."""
        return f"{', '.join([file, *_places(self.location)])}: {self.message}"


def parse_table(table: Mapping[str, Any]) -> Recipe | list[Fault]:
    """Returns the recipe that a table spells, or every fault of it, sorted by place."""
    if unreadable := list(_oversize(table)):
        return unreadable
    faults = [*_names(table), *_stages(table)]
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        faults += [_translate(fault) for fault in error.errors(include_url=False) if not _is_echo(fault)]
    else:
        if not faults:
            return recipe
    return sorted(faults, key=_order)


def describe_faults(faults: Iterable[Fault], *, file: str) -> str:
    """Returns one line per fault; past 50 lines, how many more there are."""
    lines = [fault.describe(file) for fault in faults]
    more = [f"... and {len(lines) - _MOST_LINES} more faults"] if len(lines) > _MOST_LINES else []
    return "\n".join(lines[:_MOST_LINES] + more)


def _order(fault: Fault) -> list[tuple[int, str]]:
    return [(part, "") if isinstance(part, int) else (-1, part) for part in fault.location]


def _places(location: Location) -> Iterator[str]:
    """Yields `stage 0`, `rule 2`, `match`, `key "path"`: numbered tables, plain tables, and at the end the key."""
    parts = [_ALIASES.get(part, part) if isinstance(part, str) else part for part in location]
    for index, part in enumerate(parts):
        after = parts[index + 1] if index + 1 < len(parts) else None
        if isinstance(part, int):
            continue
        if isinstance(after, int):
            yield f"{part} {after}"
        elif after is None:
            yield f'key "{part}"'
        else:
            yield part


def _is_echo(fault: Any) -> bool:
    """Whether a list only counts as too short because its items are faulty, which is reported on its own."""
    return bool(fault["type"] == "too_short" and fault["input"])


def _translate(fault: Any) -> Fault:
    """Turns pydantic's words into ours."""
    location: Location = tuple(fault["loc"])
    kind, key, got = fault["type"], location[-1], shorten(fault["input"])
    wanted = fault["msg"].removeprefix("Input should be ")
    if kind == "extra_forbidden":
        message = f"unknown key.{_hint(location)}"
    elif kind == "missing":
        message = "missing: a recipe needs at least one [[stage]] table" if key == "stage" else "missing"
    elif key in _TABLES and key != "match":
        message = f"wanted at least one [[{'.'.join(_header(location))}]] table, got {got}"
    elif kind == "tuple_type":
        message = f"wanted a list, got {got}"
    elif kind in ("dict_type", "model_type"):
        message = f"wanted a table, got {got}"
    elif kind == "string_type":
        message = f"wanted a string, got {got}"
    elif kind == "literal_error":
        message = f"wanted {wanted}, got {got}.{did_you_mean(str(fault['input']), _QUOTED.findall(wanted))}"
    else:
        message = f"wanted {wanted[0].lower()}{wanted[1:]}, got {got}"
    return Fault(location=location, message=message)


def _header(location: Location) -> list[str]:
    return [_ALIASES.get(part, part) for part in location if isinstance(part, str)]


def _hint(location: Location) -> str:
    """Returns the closest known keys of the table the unknown key stands in, the table it belongs to, or all keys."""
    key, tables = str(location[-1]), [part for part in _header(location[:-1]) if part in _TABLES]
    table = _TABLES[tables[-1]] if tables else Recipe
    if table is Stage and key in SETTING_NAMES:
        return " Training settings stand in [stage.finetune]."
    if table is Rule and key in Match.model_fields:
        return f" It stands in the rule's match: match = {{ {key} = ... }}."
    known = [field.alias or name for name, field in table.model_fields.items()]
    options = " Options of the operator stand in [stage.rule.options]." if table is Rule else ""
    return did_you_mean(key, known) or f" Known: {', '.join(known)}.{options}"


def _names(table: Mapping[str, Any]) -> Iterator[Fault]:
    named: list[tuple[Location, Any]] = [(("name",), table.get("name"))]
    named += [((*place, "name"), stage.get("name")) for place, stage in _numbered(table, "stage")]
    for location, name in named:
        if isinstance(name, str) and not _FILE_NAME.fullmatch(name):
            wanted = "a name fit for a folder (letters, digits, space . _ + -, a letter or digit first)"
            yield Fault(location=location, message=f"wanted {wanted}, got {shorten(name)}")


def _stages(table: Mapping[str, Any]) -> Iterator[Fault]:
    """Yields what the schema's types cannot see: training settings, and rules' patterns and options."""
    for place, stage in _numbered(table, "stage"):
        settings = stage.get("finetune")
        for key, message in setting_faults(settings if isinstance(settings, dict) else {}).items():
            yield Fault(location=(*place, "finetune", key), message=message)
        for rule_place, rule in _numbered(stage, "rule"):
            yield from _rule((*place, *rule_place), rule)


def _rule(place: Location, rule: Mapping[str, Any]) -> Iterator[Fault]:
    if rule.get("operator") == OPERATOR_KEEP and rule.get("options"):
        yield Fault(location=(*place, "options"), message='operator "keep" takes no options')
    match = rule.get("match")
    if not isinstance(match, dict):
        return
    exclude = match.get("exclude")
    patterns: list[tuple[Location, Any]] = [(("path",), match.get("path"))]
    patterns += [(("exclude", i), item) for i, item in enumerate(exclude if isinstance(exclude, list | tuple) else ())]
    for location, pattern in patterns:
        if isinstance(pattern, str) and (reason := _broken_regex(pattern)):
            message = f"not a regular expression, {reason}: {shorten(pattern)}"
            yield Fault(location=(*place, "match", *location), message=message)


def _broken_regex(pattern: str) -> str | None:
    if not pattern.startswith("re:"):
        return None
    try:
        re.compile(pattern.removeprefix("re:"))
    except (re.error, RecursionError, OverflowError, Warning) as error:  # a Warning where warnings are errors
        return str(error)
    return None


def _numbered(table: Mapping[str, Any], name: str) -> Iterator[tuple[Location, Mapping[str, Any]]]:
    """Yields the tables of an array of tables, under its TOML name or its Python name; skips what is no table."""
    items = table.get(name, table.get(f"{name}s"))
    for index, item in enumerate(items if isinstance(items, list | tuple) else ()):
        if isinstance(item, dict):
            yield (name, index), item


def _oversize(table: Mapping[str, Any]) -> Iterator[Fault]:
    """Yields nesting and integers beyond what TOML promises; walks without recursion, for the table is unchecked."""
    waiting: list[tuple[Location, Any]] = [((), table)]
    while waiting:
        location, value = waiting.pop()
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            yield Fault(location=location, message="wanted an integer of at most 64 bits")
        children: Iterable[tuple[str | int, Any]] = ()
        if isinstance(value, dict):
            children = value.items()
        elif isinstance(value, list | tuple):
            children = enumerate(value)
        if len(location) >= _DEEPEST and children:
            yield Fault(location=location[:1], message=f"tables and lists nested deeper than {_DEEPEST}")
        else:
            waiting += [((*location, key), child) for key, child in children]
