"""What a model computes on a batch: its logits, and the output of each of its modules by path."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


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

    The first tensor that the model returns is taken as the logits.
    """

    def record(images: Tensor) -> Recording:
        with torch.no_grad(), _watching(model) as layers:
            answer = model(images)
        return Recording(logits=_floats(answer)[0], layers=layers)

    return record


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
