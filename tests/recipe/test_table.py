"""The pages about recipes: tables made from the recipes, and examples that load."""

import re
import textwrap
from pathlib import Path

import pytest

from reparam.api.recipes import check_recipe
from reparam.recipe.shipped import shipped_recipes
from reparam.recipe.table import recipe_table, with_table

ROOT = Path(__file__).parents[2]
PAGES = ["recipes/README.md", "docs/recipes.md"]
EXAMPLES = ["docs/recipes.md", "docs/add-a-recipe.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_a_page_is_current(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert with_table(text) == text, f"stale; run: python -m reparam.recipe.table {' '.join(PAGES)}"


def test_the_table_has_a_line_per_recipe() -> None:
    rows = recipe_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(shipped_recipes())


def test_a_page_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="needs the two lines"):
        with_table("no marks")


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_examples_of_a_page_are_valid_recipes(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    examples = re.findall(r"^( *)```toml\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE)
    assert examples
    for _, example in examples:
        path = tmp_path / "mine.toml"
        path.write_text(textwrap.dedent(example), encoding="utf-8")
        check_recipe(path)
