"""The JSON Schema of a recipe file, for editors: completion, hover texts and red lines while typing."""

import dataclasses
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from reparam.recipe.schema import Recipe
from reparam.recipe.settings import TrainSettings

_JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def recipe_json_schema() -> dict[str, Any]:
    """Returns the schema (draft 2020-12): the recipe's tables, with every training setting under `finetune`.

    Operators and their options are left open, for any installed distribution may add some.
    """
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$defs"]["Stage"]["properties"]["finetune"] |= {
        "additionalProperties": False,
        "properties": _settings(),
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _settings() -> dict[str, Any]:
    kinds = get_type_hints(TrainSettings)
    return {
        field.name: {
            "description": field.metadata["help"],
            "default": "none" if field.default is None else field.default,
            **_json_type(kinds[field.name]),
        }
        for field in dataclasses.fields(TrainSettings)
    }


def _json_type(kind: Any) -> dict[str, Any]:
    """Returns the JSON type; what may be absent is also "none", for TOML has no null."""
    if get_origin(kind) is UnionType:
        some = _json_type(next(option for option in get_args(kind) if option is not type(None)))
        return some if some == {"type": "string"} else {"anyOf": [some, {"const": "none"}]}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    return {"type": _JSON_TYPES[kind]}
