"""Which architectures are alike, and which of each group is the smallest: that one is examined for all."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import timm
import torch

from reparam.survey.examine import family_of
from reparam.survey.pool import Report, describe
from reparam.survey.records import Outline, Versions


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlineTask:
    """One architecture to build without weights."""

    name: str
    versions: Versions


def outline(task: OutlineTask, report: Report) -> None:
    """Builds one architecture on the meta device and reports what tells it apart, as JSON."""
    report(outline_of_name(task).model_dump_json())


def outline_of_name(task: OutlineTask) -> Outline:
    """The outline of one architecture, or what kept it from being built."""
    blank = Outline(name=task.name, family=family_of(task.name), versions=task.versions)
    try:
        with torch.device("meta"):
            model = timm.create_model(task.name, pretrained=False)
    except Exception as error:  # it stands alone, and its examination says the same
        return blank.model_copy(update={"error": describe(error)})
    classes = sorted({f"{type(module).__module__}.{type(module).__qualname__}" for module in model.modules()})
    return blank.model_copy(
        update={
            "model_class": type(model).__qualname__,
            "shape": hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
    )


def representatives(outlines: Iterable[Outline]) -> dict[str, int]:
    """The smallest of each group, and how many it stands for; small ones first, so that most are done soon."""
    groups: dict[tuple[str, ...], list[Outline]] = {}
    for one in outlines:
        groups.setdefault(one.group, []).append(one)
    smallest = [min(group, key=lambda o: (o.parameters or 0, o.name)) for group in groups.values()]
    return {one.name: len(groups[one.group]) for one in sorted(smallest, key=lambda o: (o.parameters or 0, o.name))}
