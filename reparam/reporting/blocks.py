"""The blocks of a model, and what each of them computes: counts of modules added up."""

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

#: Members of a list of blocks: "0" in a Sequential, "layer_0" in torchvision's encoders.
_NUMBERED = re.compile(r"(\w+_)?\d+")


def block_paths(model: nn.Module) -> tuple[str, ...]:
    """Returns the paths of a model's blocks in order: members of lists of blocks, and what stands beside the lists.

    A list whose members have no modules of their own, such as an MLP in a Sequential, is no list of blocks.
    """
    return tuple(_blocks(model, ""))


def _blocks(module: nn.Module, path: str) -> Iterator[str]:
    if path and not _holds_blocks(module):
        yield path
        return
    for name, child in module.named_children():
        yield from _blocks(child, f"{path}.{name}" if path else name)


def _holds_blocks(module: nn.Module) -> bool:
    return any(_is_list(inner) for inner in module.modules())


def _is_list(module: nn.Module) -> bool:
    members = [child for name, child in module.named_children() if _NUMBERED.fullmatch(name)]
    return len(members) > 1 and any(next(member.children(), None) is not None for member in members)


def by_block(operations: Sequence[tuple[str, Mapping[str, int]]], blocks: Sequence[str]) -> dict[str, dict[str, int]]:
    """Adds up operations of modules over the blocks that hold them; those of no block stand under "", if there are any.

    Args:
        operations: path of a module, and what it computes itself, such as {"mul.f32": 12}.
        blocks: paths.
    """
    totals: dict[str, dict[str, int]] = {block: {} for block in blocks}
    for path, counts in operations:
        total = totals.setdefault(_block_of(path, totals), {})
        for key, n in counts.items():
            total[key] = total.get(key, 0) + n
    return totals


def _block_of(path: str, blocks: Mapping[str, object]) -> str:
    parts = path.split(".")
    return next((head for n in range(len(parts), 0, -1) if (head := ".".join(parts[:n])) in blocks), "")
