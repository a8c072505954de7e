"""Where the recipes that come with reparam lie: inside the wheel, or in the checkout it runs from."""

from pathlib import Path

from reparam.errors import RecipeError

_PACKAGE = Path(__file__).parents[1]


def shipped_recipes() -> dict[str, Path]:
    """Returns name -> file of every shipped recipe, sorted by name.

    Raises:
        RecipeError: this installation carries no recipes.
    """
    packed = _PACKAGE / "_recipes"
    folder = packed if packed.is_dir() else _PACKAGE.parent / "recipes"
    found = {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}
    if not found:
        raise RecipeError(f"this installation of reparam carries no recipes: none in {folder}. Install it again.")
    return found
