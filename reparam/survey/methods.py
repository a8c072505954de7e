"""Whether timm's methods still do on a converted model what they do on the original; on meta copies, without data."""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from reparam.copying import meta_copy
from reparam.survey.checks import CheckFailed, NotApplicable, swapped_paths
from reparam.survey.pool import describe
from reparam.survey.specimen import BATCH, Specimen, tensors

_CLASSES = 7
_SHOWN = 200
_Answer = Callable[[nn.Module, Tensor], Any]


def _features_and_head(model: Any, images: Tensor) -> Any:
    features = model.forward_features(images)
    return _shapes(features), _shapes(model.forward_head(features)) if hasattr(model, "forward_head") else None


def _intermediates(model: Any, images: Tensor) -> Any:
    return _shapes(model.forward_intermediates(images))


def _classifier(model: Any, images: Tensor) -> Any:
    """How many modules it hands out; a recipe may have converted them."""
    found = model.get_classifier()
    return 1 if isinstance(found, nn.Module) else len(found)


def _reset(model: Any, images: Tensor) -> Any:
    model.reset_classifier(_CLASSES)
    return _shapes(model(images))


def _undecayed(model: Any, images: Tensor) -> Any:
    return sorted(model.no_weight_decay())


def _groups(model: Any, images: Tensor) -> Any:
    """How many layer groups there are; every parameter must fall into one."""
    return len(group_parameters(model, model.group_matcher(coarse=False)))


#: The method, and what is compared; `forward_head` is called on what `forward_features` gives. `reset_classifier`
#: changes the model and so stands last.
METHODS: dict[str, _Answer] = {
    "forward_features": _features_and_head,
    "forward_intermediates": _intermediates,
    "get_classifier": _classifier,
    "no_weight_decay": _undecayed,
    "group_matcher": _groups,
    "reset_classifier": _reset,
}


def methods(subject: Specimen) -> str | None:
    """Each method that the original has, and that works there, gives the same shapes or names afterwards."""
    if subject.converted is None:
        raise CheckFailed("there is no converted model, because the conversion failed")
    original, converted = meta_copy(subject.outline).eval(), meta_copy(subject.converted).eval()
    images = subject.images(BATCH).to("meta")
    before = {name: _tried(name, original, images) for name in METHODS if hasattr(original, name)}
    if not before:
        raise NotApplicable("the architecture has none of timm's methods")
    works = [name for name, (_, error) in before.items() if error is None]
    faults = [_fault(subject, name, before[name][0], *_tried(name, converted, images)) for name in works]
    if any(faults):
        raise CheckFailed("; ".join(filter(None, faults)))
    broken = [f"{name} raises {error} on the original" for name, (_, error) in before.items() if error is not None]
    return "; ".join(broken) or None


def _fault(subject: Specimen, name: str, wanted: Any, got: Any, error: str | None) -> str | None:
    if error is not None:
        return f"{name} raises {error}"
    if name == "no_weight_decay":  # parameters of a swapped module have other names, or none
        wanted, got = (sorted(n for n in names if not n.startswith(swapped_paths(subject))) for names in (wanted, got))
    return None if got == wanted else f"{name} gave {_cut(wanted)} and now gives {_cut(got)}"


def _cut(answer: Any) -> str:
    text = str(answer)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _tried(name: str, model: nn.Module, images: Tensor) -> tuple[Any, str | None]:
    """What a method gives, or what it raises: on the original that is a note, on the converted model a failure."""
    try:
        with torch.no_grad(), torch.device("meta"):
            return METHODS[name](model, images), None
    except Exception as error:
        return None, describe(error)


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors(tree)]
