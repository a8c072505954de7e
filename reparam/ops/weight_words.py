"""How many words of which type a module's weights are, as a device would hold them."""

from collections import Counter

from torch import nn

from reparam.ops.base import Operator


def weight_words(module: nn.Module) -> Counter[str]:
    """Returns the words of all parameters inside, by type, such as {"i5": n, "f32": m}.

    An operator says what its own are; those of every other module are 32-bit floats.
    """
    words = Counter[str]()
    for part in module.modules():
        if isinstance(part, Operator):
            words.update(part.weight_words())
        else:
            words["f32"] += sum(parameter.numel() for parameter in part.parameters(recurse=False))
    return +words
