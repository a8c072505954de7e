"""`reparam recipes`: which recipes there are, what one says, whether one is valid, and the schema for editors."""

from pathlib import Path
from typing import Annotated

import typer

import reparam
from reparam_cli.options import AsJson, Overrides
from reparam_cli.panels import SectionedCommand
from reparam_cli.streams import only_results_on_stdout, plain, print_json
from reparam_cli.words import counted

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and check recipes.")

Name = Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe or a .toml file.")]
AsToml = Annotated[bool, typer.Option("--toml", help="Print the file itself, as a start for a recipe of your own.")]


@app.command("list", cls=SectionedCommand)
def list_(*, as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    found = reparam.list_recipes()
    if as_json:
        entries = [{"name": r.name, "summary": r.summary, "paper": r.paper, "path": str(r.path)} for r in found]
        print_json(entries)
        return
    from reparam_cli.render.recipes import list_view
    from reparam_cli.render.screen import show as show_view

    show_view(list_view(found))


@app.command(cls=SectionedCommand)
def show(name: Name, *, overrides: Overrides = None, as_toml: AsToml = False, as_json: AsJson = False) -> None:
    """Show the stages and rules of one recipe."""
    recipe = reparam.load_recipe(name, overrides=overrides or ())
    if as_toml:
        shipped = {summary.name: summary.path for summary in reparam.list_recipes()}
        print(shipped.get(name, Path(name)).read_text(encoding="utf-8"), end="")
        return
    if as_json:
        print_json(plain(recipe))
        return
    from reparam_cli.render.recipes import recipe_view
    from reparam_cli.render.screen import show as show_view

    show_view(recipe_view(recipe))


@app.command(cls=SectionedCommand)
def check(name: Name, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a recipe: its keys, its operators and their options. Faults are listed all at once; exit code 2."""
    with only_results_on_stdout():
        recipe = reparam.check_recipe(name, overrides=overrides or ())
    if as_json:
        print_json(plain(recipe))
    else:
        stages, rules = len(recipe.stages), sum(len(stage.rules) for stage in recipe.stages)
        print(f"{recipe.name} is valid: {counted(stages, 'stage')}, {counted(rules, 'rule')}")


@app.command(cls=SectionedCommand)
def schema() -> None:
    """Print the JSON Schema of a recipe file, for completion in an editor."""
    print_json(reparam.recipe_json_schema())
