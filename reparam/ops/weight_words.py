"""How many words of which type an operator's weights are, as a device would hold them."""

from collections import Counter

from torch import nn

from reparam.ops.shift_layer import ShiftLayer


def weight_words(module: nn.Module) -> Counter[str]:
    """Returns the words of all parameters inside, by type: {"i5": n, "f32": m} for a shift layer of 5 bits, with bias.

    A shift weight is a sign and an exponent code, whatever trains it; every other parameter is a 32-bit float. The
    offsets of a shift layer's channels are added to the exponent of its output and no word of their own.
    """
    words = Counter[str]()
    for part in module.modules():
        if isinstance(part, ShiftLayer):
            words[f"i{part.options.bits}"] += (
                part.latent if part.options.parameterisation == "q" else part.shift
            ).numel()
            words["f32"] += 0 if part.bias is None else part.bias.numel()
        else:
            words["f32"] += sum(parameter.numel() for parameter in part.parameters(recurse=False))
    return +words
