"""Reads a recipe: a shipped name, a TOML file, or a `Recipe`, with overrides on top; every fault in one error."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reparam.errors import RecipeError
from reparam.recipe.faults import describe_faults, parse_table
from reparam.recipe.overrides import apply_overrides
from reparam.recipe.schema import Recipe
from reparam.recipe.shipped import shipped_recipes
from reparam.suggest import did_you_mean

_LARGEST_FILE = 1_000_000


def load_recipe(source: str | Path | Recipe, *, overrides: Sequence[str] = ()) -> Recipe:
    """Loads and validates a recipe; operators and their options are left to `check_recipe`, for they need torch.

    Args:
        source: the name of a shipped recipe, a path that ends in .toml, or a recipe.
        overrides: changes such as `stage.0.rule.2.options.bits=4`, applied in order; see `apply_overrides`.

    Raises:
        RecipeError: the recipe cannot be found, read, or validated; one line per fault with file, table and key.
    """
    label = recipe_label(source)
    table = source.model_dump(by_alias=True) if isinstance(source, Recipe) else _read_toml(_find(source), label=label)
    recipe = parse_table(table)
    if not isinstance(recipe, Recipe):
        raise RecipeError(describe_faults(recipe, file=label))
    return apply_overrides(recipe, overrides, label=label) if overrides else recipe


def recipe_label(source: str | Path | Recipe) -> str:
    """Returns what messages call a recipe: the path as given, a shipped one's file name, or `recipe "name"`."""
    if isinstance(source, Recipe):
        return f'recipe "{source.name}"'
    return str(source) if _is_path(source) else f"{source}.toml"


def _is_path(source: str | Path) -> bool:
    """A shipped name has neither a suffix nor a separator."""
    return isinstance(source, Path) or source.endswith(".toml") or "/" in source or "\\" in source


def _find(source: str | Path) -> Path:
    shipped = shipped_recipes()
    if not _is_path(source):
        if str(source) in shipped:
            return shipped[str(source)]
        raise RecipeError(f'unknown recipe "{source}".{_shipped_hint(str(source))} Or give a path that ends in .toml.')
    path = Path(source)
    if path.suffix != ".toml" and not _is_there(path):
        raise RecipeError(f'no such recipe: "{path}". A recipe is a shipped name or a path that ends in .toml.')
    if not _is_there(path):
        raise RecipeError(f'no such file: "{path}".{_shipped_hint(path.stem)}')
    if path.is_dir():
        raise RecipeError(f'"{path}" is a directory; a recipe is one .toml file.{_toml_inside(path)}')
    if not path.is_file() or path.suffix != ".toml":
        raise RecipeError(f'"{path}" is not a .toml file; a recipe is a shipped name or a path that ends in .toml.')
    return path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _toml_inside(folder: Path) -> str:
    try:
        inside = sorted(path.name for path in folder.glob("*.toml"))
    except OSError:
        return ""
    return f" It holds {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}." if inside else ""


def _shipped_hint(name: str) -> str:
    shipped = shipped_recipes()
    return f"{did_you_mean(name, shipped)} Shipped: {', '.join(shipped)}."


def _read_toml(path: Path, *, label: str) -> dict[str, Any]:
    text = _read_text(path, label=label)
    if not text.strip():
        raise RecipeError(f"{label}: the file is empty; a recipe needs name, summary and at least one [[stage]] table.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(_syntax_fault(str(error), text, label=label)) from None
    except (ValueError, RecursionError):  # an integer of thousands of digits, or thousands of open brackets
        raise RecipeError(f"{label}: not valid TOML: a number is too long or tables are nested too deeply.") from None


def _read_text(path: Path, *, label: str) -> str:
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= _LARGEST_FILE else b""
    except OSError as error:
        raise RecipeError(f"{label}: cannot be read: {error.strerror or error}.") from None
    if size > _LARGEST_FILE:
        raise RecipeError(f"{label}: {size / 1e6:.1f} MB is too large for a recipe; is it one? At most 1 MB is read.")
    try:
        text = content.decode("utf-8-sig")  # some editors put a byte-order mark in front
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{label}, line {line}: not UTF-8 text; a recipe is a TOML text file.") from None
    if "\0" in text:
        raise RecipeError(f"{label}: a binary file; a recipe is a TOML text file.")
    return text


def _syntax_fault(message: str, text: str, *, label: str) -> str:
    """Moves tomllib's position to the front: `file.toml, line 3, column 5: not valid TOML: ...`."""
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if found is None:
        return f"{label}: not valid TOML: {message}"
    line, column = found.groups() if found[1] else (str(text.rstrip().count("\n") + 1), None)
    where = f"line {line}, column {column}" if column else f"line {line}, the last one"
    return f"{label}, {where}: not valid TOML: {message[: found.start()]}"
