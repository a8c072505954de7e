"""What becomes of each class: how many of its images are found, and which class they are mistaken for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reparam.errors import OptionError
from reparam.recipe.schema import Frozen

#: A matrix of more classes would take gigabytes: ImageNet-21k's 3.8 GB.
_MOST_CLASSES = 4096


class ClassResult(Frozen):
    """One class. `recall` is the percentage of its images that were given it, `precision` that of the images given it
    that are its own; None where there are none. `mistaken_for` is the class that most of its other images were given,
    `mistaken` of them; None and 0 where every image was right.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None
    mistaken_for: str | None
    mistaken: int


def empty_confusion(classes: int, *, device: torch.device) -> Tensor:
    """Returns the counts (K, K) of no images, int64; raises OptionError for more classes than fit in memory."""
    if classes > _MOST_CLASSES:
        raise OptionError(
            f"results per class: the model has {classes} outputs, and a confusion matrix is kept for up to "
            f"{_MOST_CLASSES}; leave --per-class and --confusion out"
        )
    return torch.zeros(classes, classes, dtype=torch.int64, device=device)


def count_confusion_(confusion: Tensor, logits: Tensor, targets: Tensor) -> None:
    """Adds a batch to the counts (K, K), row the true class and column the predicted one, without waiting for it.

    Args:
        confusion: (K, K) int64.
        logits: (B, K).
        targets: (B,), in [0, K).
    """
    # Not bincount: on CUDA that reads the largest value on the host.
    cells = targets.long() * len(confusion) + logits.argmax(dim=-1)
    confusion.view(-1).scatter_add_(0, cells, torch.ones_like(cells))


def class_results(confusion: Tensor, classes: Mapping[str, int]) -> tuple[ClassResult, ...]:
    """Returns one result per output of the model, in their order, of counts (K, K).

    Args:
        confusion: (K, K), row the true class and column the predicted one.
        classes: names to outputs; an output without a name is called by its number.
    """
    named = {index: name for name, index in classes.items()}
    names = [named.get(index, str(index)) for index in range(len(confusion))]
    correct = confusion.diagonal()
    mistaken, partners = (confusion - torch.diag(correct)).max(dim=1)
    figures = torch.stack([correct, confusion.sum(1), confusion.sum(0), mistaken, partners], dim=1).tolist()
    return tuple(
        ClassResult(
            name=name,
            images=images,
            recall=100 * right / images if images else None,
            precision=100 * right / predicted if predicted else None,
            mistaken_for=names[partner] if wrong else None,
            mistaken=wrong,
        )
        for name, (right, images, predicted, wrong, partner) in zip(names, figures, strict=True)
    )
