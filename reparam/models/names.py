"""From what people type to one timm name: exact, or the one model that adds only patch and size; else candidates."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from timm.models import get_arch_pretrained_cfgs, get_deprecated_models, split_model_name_tag

from reparam.errors import ModelError
from reparam.models.cifar_resnet import CIFAR_RESNETS
from reparam.models.sources import split_source

_PATCH_AND_SIZE = re.compile(r"(_(patch|p)\d+)?(_window\d+)?(_\d+)?$")
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A model name that can be built, and a note when it is not what was typed."""

    name: str
    note: str | None = None


def resolve_name(name: str) -> Resolved:
    """Resolves a timm name or shorthand; `hf-hub:`, `local-dir:` and `file.py:factory` come back as they are.

    A pretrained tag (`deit_tiny.fb_in1k`) is kept.

    Raises:
        ModelError: unknown or ambiguous name, or a tag the model does not have; the message lists candidates.
    """
    source, _ = split_source(name)
    if source != "timm":
        return Resolved(name=name)
    architecture, tag = split_model_name_tag(name)
    if architecture in (renamed := get_deprecated_models()):
        current = str(renamed[architecture])
        return Resolved(name=current, note=f"{name} is now called {current} in timm")
    full = architecture if timm.is_model(architecture) else _expanded(architecture, typed=name)
    _check_tag(full, tag)
    resolved = f"{full}.{tag}" if tag else full
    return Resolved(name=resolved, note=None if full == architecture else f"{name} is short for {resolved}")


def _expanded(shorthand: str, *, typed: str) -> str:
    known = timm.list_models()
    fits = [name for name in known if name.startswith(shorthand) and _PATCH_AND_SIZE.match(name, len(shorthand))]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ModelError(
            f'model "{shorthand}" is short for {len(fits)} timm models: {_listed(fits)}. Name one of them.'
        )
    own, candidates = _candidates(shorthand, list(CIFAR_RESNETS)), _candidates(shorthand, known)
    ours = f" reparam itself has {_listed(own)}." if own else ""
    hint = f"Close names: {_listed(candidates)}." if candidates else "timm.list_models() lists all names."
    here = f' There is a path "{typed}" here, but no model that reparam has written.' if Path(typed).exists() else ""
    raise ModelError(f'model "{shorthand}" is unknown to timm {timm.__version__}.{here}{ours} {hint}')


def _check_tag(architecture: str, tag: str) -> None:
    tags = [split_model_name_tag(name)[1] for name in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        known = ", ".join(t for t in tags if t) or "none"
        raise ModelError(f'model "{architecture}" has no pretrained tag "{tag}". Its tags: {known}.')


def _candidates(name: str, known: Sequence[str]) -> list[str]:
    """Names that begin with what was typed, then that hold it, then that hold its parts in order, then spelt alike."""
    typed = re.sub(r"[-\s]+", "_", name.lower())
    whole = re.escape(typed) + (r"(?!\d)" if typed[-1].isdigit() else "")  # resnet20 is no beginning of resnet200
    parts = ".*".join(re.escape(part) for part in typed.split("_"))
    for pattern in (f"^{whole}", whole, parts if "_" in typed else whole):
        if found := [candidate for candidate in known if re.search(pattern, candidate)]:
            return found
    stems = {_PATCH_AND_SIZE.sub("", candidate) for candidate in known}
    close = difflib.get_close_matches(typed, sorted(stems), n=4)
    return [candidate for stem in close for candidate in known if _PATCH_AND_SIZE.sub("", candidate) == stem]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
