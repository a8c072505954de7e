"""The table of shipped recipes that stands in Markdown pages, made from the recipes themselves.

`python -m reparam.recipe.table PAGE...` rewrites what stands between the two marks of each page.
"""

import sys
from pathlib import Path

from reparam.recipe.load import load_recipe
from reparam.recipe.shipped import shipped_recipes

BEGIN = "<!-- recipes: made by `python -m reparam.recipe.table PAGE` -->"
END = "<!-- /recipes -->"


def recipe_table() -> str:
    """Returns a Markdown table, one line per shipped recipe: name, summary, paper."""
    lines = ["| recipe | what it does | paper |", "|---|---|---|"]
    for name in shipped_recipes():
        recipe = load_recipe(name)
        lines.append(f"| `{name}` | {recipe.summary} | {_paper_link(recipe.paper)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """Returns the page with today's table between its two marks; raises ValueError for a page without them."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the two lines {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{recipe_table()}\n{END}{tail}"


def _paper_link(paper: str | None) -> str:
    if paper is None:
        return ""
    return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" if paper.startswith("arXiv:") else paper


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
