"""`reparam demo`: the main job on embedded data, in minutes and without a download."""

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

import reparam
from reparam_cli.options import AsJson
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder to write.", show_default="runs/demo, or the next free number"),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Epochs to fine-tune each stage.", show_default="the demo's own")
]


def demo(*, out: Out = None, epochs: Epochs = None, as_json: AsJson = False) -> None:
    """Convert and fine-tune a small ViT on handwritten digits that come with scikit-learn, and compare."""
    from reparam_cli.render.results import demo_view  # Rich, imported only when there is something to draw
    from reparam_cli.render.screen import message_console, show
    from reparam_cli.render.training import progress_on

    folder = out or _free(Path("runs/demo"))
    with only_results_on_stdout(), progress_on(message_console()) as progress:
        result = reparam.demo(folder, epochs=epochs, progress=progress)
    if as_json:
        print_json(plain(result))
    else:
        show(demo_view(result))
        print(f"saved to {folder}")


def _free(folder: Path) -> Path:
    """Returns `folder`, or the first of `folder-2`, `folder-3`, ... that holds nothing yet."""
    numbered = (folder.with_name(f"{folder.name}-{n}") for n in count(2))
    return folder if _is_free(folder) else next(candidate for candidate in numbered if _is_free(candidate))


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
