"""The commands that make a run again, from what it has on record: its config.json and its args.yaml."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from reparam.checkpoint.record import Record
from reparam.errors import CheckpointError, RecipeError
from reparam.models.spec import ModelSpec
from reparam.models.weights import WeightsRecord
from reparam.recipe.data_settings import DataSettings
from reparam.recipe.flags import data_flags, flag
from reparam.recipe.load import load_recipe
from reparam.recipe.resolve import resolve_settings
from reparam.recipe.schema import Frozen, Recipe
from reparam.recipe.settings import TrainSettings

ARGS_NAME = "args.yaml"
Args = Mapping[str, Any]
#: Arguments of a model's builder that have flags of their own.
_SHAPE = ("num_classes", "img_size", "in_chans")
#: Their weights come with the name, whatever `--weights` says by default.
_OWN_WEIGHTS = frozenset({"hub", "local-dir", "factory"})


class Commands(Frozen):
    """Command lines, in order, and what they cannot bring back."""

    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_args(run: Path) -> Args | None:
    """What `finetune` was asked for: `args.yaml`, or None where the run was not fine-tuned.

    Raises:
        CheckpointError: the file is not as `finetune` writes it.
    """
    path = run / ARGS_NAME
    if not path.is_file():
        return None
    try:
        args = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: not intact YAML ({str(error).splitlines()[0]}); move the file away") from error
    if not isinstance(args, dict) or not isinstance(args.get("stages"), list):
        raise CheckpointError(f"{path}: not as reparam finetune writes it; move the file away")
    return args


def data_of(args: Args) -> DataSettings:
    """The data that a run was trained on."""
    known: dict[str, Any] = {
        entry.name: args[entry.name] for entry in fields(DataSettings) if args.get(entry.name) is not None
    }
    return DataSettings(**_with_tuples(known))


def reproduce(run: Path, record: Record, args: Args | None) -> Commands:
    """Returns the commands that convert, fine-tune, evaluate and profile as the run was.

    Args:
        run: its folder, as it is to be written.
        record: of its checkpoint.
        args: as `read_args` returns them.
    """
    if record.plan is None or record.base.weights is None:
        return Commands(lines=(), notes=("It holds a dense model, which no command of reparam converted.",))
    spec, weights = record.base.spec, record.base.weights
    if spec.source == "module":
        return Commands(lines=(), notes=(f"It was converted in Python, by reparam.convert, from a {spec.name}.",))
    overrides, notes = _overrides(record.plan.recipe)
    recipe = ["--recipe", record.plan.recipe.name, *(word for text in overrides or () for word in ("--set", text))]
    if weights.kind == "none":
        notes = (*notes, "Its weights began at random, and begin otherwise each time.")
    convert = ["reparam", "convert", model_name(spec, weights), *recipe, *_shape(spec), *_weights(weights)]
    lines = [[*convert, "--out", str(run)]]
    data: list[str] = []
    if args is not None:
        data = list(data_flags(data_of(args)))
        lines.append(["reparam", "finetune", str(run), *data, *_settings(record.plan.recipe, args)])
    lines.append(["reparam", "evaluate", str(run), *(data or ["--data-dir", "DATA"])])
    lines.append(["reparam", "profile", str(run)])
    return Commands(lines=tuple(map(shlex.join, lines)), notes=notes)


def model_name(spec: ModelSpec, weights: WeightsRecord | None) -> str:
    """What `reparam convert` takes for the model: timm's name with its tag, or the folder, hub or file it came from."""
    if spec.source in ("local-dir", "hf-hub") and weights is not None and weights.source:
        source = weights.source
        return source if source.startswith(f"{spec.source}:") else f"{spec.source}:{source}"
    tag = spec.pretrained_cfg.get("tag") if spec.source == "timm" else None
    return f"{spec.name}.{tag}" if tag else spec.name


def _shape(spec: ModelSpec) -> Iterator[str]:
    """Every argument of the builder, for a folder or hub may be read otherwise one day."""
    others = []
    for key, value in spec.kwargs.items():
        square = value[0] if isinstance(value, list) and len(set(value)) == 1 else value
        if key in _SHAPE and isinstance(square, int):
            yield from (f"--{key.replace('_', '-')}", str(square))
        else:
            others.append(f"{key}={value}")
    if others:
        yield from ("--model-kwargs", *others)


def _weights(weights: WeightsRecord) -> list[str]:
    if weights.kind in _OWN_WEIGHTS:
        return []
    return ["--weights", weights.source or weights.kind]


def _settings(recipe: Recipe, args: Args) -> Iterator[str]:
    """The settings that win over the recipe's own: those in which a trained stage differs from it."""
    names = [stage.name for stage in recipe.stages]
    trained = [stage for stage in args["stages"] if stage.get("stage") in names]
    given: dict[str, Any] = {}
    for stage in trained:
        own = asdict(resolve_settings(recipe.stages[names.index(stage["stage"])].finetune))
        asked = _with_tuples(stage)
        given |= {key: asked[key] for key in own if key in asked and asked[key] != own[key]}
    if len(trained) == 1 < len(names):
        yield from ("--stage", str(names.index(trained[0]["stage"])))
    for entry in fields(TrainSettings):
        if entry.name in given:
            yield from flag(entry.name, given[entry.name])
    if args.get("device"):
        yield from ("--device", str(args["device"]))


def _with_tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """YAML has lists only."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _overrides(recipe: Recipe) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """What `--set` makes of the shipped recipe of that name the one that was used, or a note where nothing does."""
    elsewhere = f'The recipe "{recipe.name}" is not the one that ships; it is in config.json, under reparam.recipe.'
    try:
        shipped = load_recipe(recipe.name)
        texts = tuple(_differences(shipped.model_dump(by_alias=True), recipe.model_dump(by_alias=True), ()))
        is_it = (load_recipe(recipe.name, overrides=texts) if texts else shipped) == recipe
    except RecipeError:
        is_it, texts = False, ()
    return (texts, ()) if is_it else (None, (elsewhere,))


def _differences(was: Any, now: Any, path: tuple[str, ...]) -> Iterator[str]:
    if was == now:
        return
    if isinstance(now, dict) and isinstance(was, dict | None):
        for key in now:
            yield from _differences((was or {}).get(key), now[key], (*path, key))
    elif path[-1:] in (("stage",), ("rule",)) and len(was) == len(now):
        for index, (old, new) in enumerate(zip(was, now, strict=True)):
            yield from _differences(old, new, (*path, str(index)))
    else:
        yield f"{'.'.join(path)}={json.dumps(now)}"
