"""What a model computes on a batch: its logits, and the output of each of its modules by path."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.errors import ModelError, ReparamError, first_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Of one batch: logits (B, K), and for each module the floating-point outputs of its calls, in one row.

    `layers` are in the order in which the modules finished: parts before what holds them. Of an exported file, which
    has no modules, they are inferred, and hold one tensor each.
    """

    logits: Tensor
    layers: dict[str, list[Tensor]] = field(default_factory=dict)


#: Runs a model on images (B, C, H, W).
Recorder = Callable[[Tensor], Recording]


def record_modules(model: nn.Module) -> Recorder:
    """Returns a recorder of a torch model, in the mode it is in; its hooks are there only while it runs.

    It raises ModelError where the model does not run on the images, or as `logits_of`.
    """

    def record(images: Tensor) -> Recording:
        try:
            with torch.no_grad(), _watching(model) as layers:
                answer = model(images)
        except ReparamError:
            raise
        except Exception as error:  # whatever a forward raises for what it does not take
            raise ModelError(
                f"{type(model).__name__} does not run on images {tuple(images.shape)} of {images.dtype}: "
                f"{first_line(error)}"
            ) from error
        return Recording(logits=logits_of(answer), layers=layers)

    return record


def logits_of(answer: object) -> Tensor:
    """The first floating-point tensor in what a model returns, a tensor, a tuple or a dictionary.

    Raises:
        ModelError: there is none.
    """
    found = _floats(answer)
    if not found:
        raise ModelError(f"wanted a model that gives logits, got a {type(answer).__name__} without a tensor of floats")
    return found[0]


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    found: dict[str, list[Tensor]] = {}

    def hook(path: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            # A later module may write into this output.
            found.setdefault(path, []).extend(tensor.clone() for tensor in _floats(output))

        return keep

    handles = [module.register_forward_hook(hook(path)) for path, module in model.named_modules() if path]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _floats(tree: object) -> list[Tensor]:
    leaves = pytree.tree_leaves(tree)
    return [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
