"""Options that several verbs share, and options made from the settings' dataclasses, so that each is described once."""

import ast
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A timm name or its shorthand (deit_tiny), hf-hub:OWNER/NAME, local-dir:PATH, or file.py:factory.",
        show_default=False,
    ),
]
Source = Annotated[
    str,
    typer.Argument(metavar="RUN|MODEL", help="A folder that reparam wrote, or a model by name.", show_default=False),
]
RecipeName = Annotated[
    str,
    typer.Option("--recipe", metavar="NAME|FILE", help="A shipped recipe or a .toml file.", show_default=False),
]
NumClasses = Annotated[int | None, typer.Option("--num-classes", min=1, help="Classes of the model's head.")]
ImgSize = Annotated[int | None, typer.Option("--img-size", min=1, help="Side of the square input, in pixels.")]
InChans = Annotated[int | None, typer.Option("--in-chans", min=1, help="Channels of the input.")]
ModelKwargs = Annotated[
    list[str] | None,
    typer.Option("--model-kwargs", metavar="KEY=VALUE ...", help="Arguments of the model's constructor."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe entry, such as stage.0.rule.2.bits=4; may be repeated."
    ),
]
StageNumber = Annotated[
    int | None, typer.Option("--stage", min=0, help="Stop after this stage; 0 is the first. Default: every stage.")
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="hub|none|FILE", help="Pretrained weights, none, or a .safetensors file.")
]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Keep a site dense where its operator refuses it, instead of failing.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...", show_default="cuda where there is one")
]
BatchSize = Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Images at a time.")]
Workers = Annotated[int, typer.Option("-j", "--workers", min=0, help="Loader processes.")]
Fresh = Annotated[bool, typer.Option("--fresh/--resume", help="Start over, or go on where an earlier run stopped.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write.", show_default=False)]

#: A new heading in `--help` begins at the setting of this name.
HEADINGS = {
    "epochs": "Length and batches",
    "opt": "Optimiser and schedule",
    "smoothing": "Regularisation and augmentation",
    "model_ema": "Moving average",
    "distill_loss_weight": "Losses",
    "amp": "Precision and machine",
    "log_interval": "Logging",
}


@dataclass(frozen=True, slots=True)
class Given:
    """A parsed value, so that a given `none` differs from an option that was not given."""

    value: Any


def with_options_of(**tables: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that turns parameters into the options of dataclasses.

    `@with_options_of(settings=TrainSettings)` replaces the parameter `settings` by one option per field; the command
    receives a dictionary of the fields that the user gave. What was not given stays out, so the recipe's own settings
    are not overridden by defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            for name, table in tables.items():
                values[name] = _take_given(table, values)
            command(**values)

        run.__signature__ = _signature(command, tables)  # type: ignore[attr-defined]  # what Typer reads
        return run

    return decorate


def stage_count(stage: int | None) -> int | None:
    """Turns the number of the last stage into how many stages to apply; None stands for all."""
    return None if stage is None else stage + 1


def default_out(model: str, recipe: str) -> Path:
    """Returns `runs/<model>-<recipe>`, with every character that does not belong in a folder's name made a dash."""
    stem = Path(recipe).stem if recipe.endswith(".toml") else recipe
    return Path("runs") / re.sub(r"[^\w.+]+", "-", f"{model}-{stem}").strip("-.")


def parse_pairs(words: list[str] | None, *, flag: str) -> dict[str, Any]:
    """Reads `key=value` words; a value is a Python literal where it looks like one (`64`, `True`), else a string."""
    return dict(_parse_pair(word, flag=flag) for word in words or [])


def _parse_pair(word: str, *, flag: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f'wanted KEY=VALUE, got "{word}"', param_hint=flag)
    return key, _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _signature(command: Callable[..., None], tables: dict[str, Any]) -> inspect.Signature:
    own = inspect.signature(command).parameters.values()
    kept = [parameter for parameter in own if parameter.name not in tables]
    made = [parameter for name, table in tables.items() for parameter in _parameters(table, heading=name.capitalize())]
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*kept, *made]]
    return inspect.Signature(keyword_only)


def _parameters(table: Any, *, heading: str) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(table)
    for entry in fields(table):
        heading = HEADINGS.get(entry.name, heading)
        annotation = _annotation(entry, hints[entry.name], heading=heading)
        yield inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _annotation(entry: Field[Any], hint: Any, *, heading: str) -> Any:
    short = entry.metadata.get("short")
    flags = [f"--{entry.name.replace('_', '-')}", *([f"-{short}"] if short else [])]
    help_text = f"{entry.metadata['help']}{_shown_default(entry.default)}"
    common: dict[str, Any] = {"help": help_text, "show_default": False, "rich_help_panel": heading}
    kind = _without_none(hint)
    if get_origin(kind) is tuple and Ellipsis in get_args(kind):
        member = get_args(kind)[0]
        return Annotated[
            types.GenericAlias(list, member) | None, typer.Option(*flags, metavar=f"<{member.__name__}> ...", **common)
        ]
    if kind is hint:
        return Annotated[hint | None, typer.Option(*flags, **common)]
    option = typer.Option(*flags, parser=_or_none(kind), metavar=f"<{kind.__name__}>", **common)
    return Annotated[Given | None, option]


def _without_none(hint: Any) -> Any:
    """Returns X for X | None, and any other type as it is."""
    if get_origin(hint) not in (Union, types.UnionType) or type(None) not in get_args(hint):
        return hint
    return next(kind for kind in get_args(hint) if kind is not type(None))


def _or_none(kind: type) -> Callable[[str], Given]:
    def parse(text: str) -> Given:
        if text.lower() == "none":
            return Given(None)
        try:
            return Given(kind(text))
        except ValueError:
            raise typer.BadParameter(f'wanted {kind.__name__} or none, got "{text}"') from None

    return parse


def _shown_default(default: Any) -> str:
    if default is None or default == "" or isinstance(default, bool):
        return ""
    values = default if isinstance(default, tuple) else (default,)
    return f" [default: {' '.join(_short(value) for value in values)}]"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _take_given(table: Any, values: dict[str, Any]) -> dict[str, Any]:
    given = {entry.name: values.pop(entry.name) for entry in fields(table)}
    return {name: _taken(value) for name, value in given.items() if value is not None}


def _taken(value: Any) -> Any:
    if isinstance(value, Given):
        return value.value
    return tuple(value) if isinstance(value, list) else value
