"""The schema for editors: current on disk, and in step with what the loader takes."""

import json
import tomllib

import pytest

from reparam.recipe.json_schema import recipe_json_schema
from reparam.recipe.settings import SETTING_NAMES
from reparam.recipe.shipped import shipped_recipes

FILE = shipped_recipes()["shiftaddvit"].parent / "recipe.schema.json"


def test_the_file_is_current() -> None:
    wanted = json.dumps(recipe_json_schema(), indent=2) + "\n"
    assert FILE.read_text(encoding="utf-8") == wanted, f"stale; run: reparam recipes schema > {FILE}"


def test_every_training_setting_is_described() -> None:
    finetune = recipe_json_schema()["$defs"]["Stage"]["properties"]["finetune"]
    assert list(finetune["properties"]) == list(SETTING_NAMES)
    assert finetune["additionalProperties"] is False
    assert all(entry["description"] and entry.keys() & {"type", "anyOf"} for entry in finetune["properties"].values())
    assert finetune["properties"]["clip_grad"]["anyOf"] == [{"type": "number"}, {"const": "none"}]
    assert finetune["properties"]["scale"]["minItems"] == 2


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_the_schema_knows_every_key_that_a_shipped_recipe_uses(name: str) -> None:
    schema = recipe_json_schema()
    recipe = tomllib.loads(shipped_recipes()[name].read_text(encoding="utf-8"))
    assert recipe.keys() <= schema["properties"].keys()
    for stage in recipe["stage"]:
        known = schema["$defs"]["Stage"]["properties"]
        assert stage.keys() <= known.keys()
        assert stage["finetune"].keys() <= known["finetune"]["properties"].keys()
        for rule in stage.get("rule", []):
            assert rule.keys() <= schema["$defs"]["Rule"]["properties"].keys()
            assert rule["match"].keys() <= schema["$defs"]["Match"]["properties"].keys()
