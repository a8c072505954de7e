"""The arithmetic of a ViT, counted on paper: the oracle of counts and plans."""


def vit_operations(
    *, tokens: int, width: int, heads: int, patches: int, patch: int, depth: int, classes: int
) -> dict[str, int]:
    """Arithmetic of one image through a ViT with 4x MLPs, by formulas written out on paper."""
    cells, hidden, scores = tokens * width, tokens * 4 * width, heads * tokens**2
    embed = patches * width * 3 * patch**2
    macs = embed + depth * (4 * cells * width + 2 * tokens * cells + 2 * hidden * width) + width * classes
    biases = patches * width + depth * (3 * cells + cells + hidden + cells) + classes
    residuals = cells * (1 + 2 * depth)  # the position embedding, and two in each block
    norms = 2 * depth + 1
    return {
        # x - mean and its square, the scaling by the inverse root, by the weight; two constants a token.
        "mul.f32": macs + norms * (3 * cells + 2 * tokens) + depth * (scores + 3 * hidden),
        "add.f32": macs + biases + residuals + norms * (4 * cells + tokens) + depth * (2 * scores + hidden),
        "exp.f32": depth * (scores + hidden),
        "cmp.f32": depth * scores,
        "div.f32": depth * scores + norms * tokens,
        "sqrt.f32": norms * tokens,
    }


PICO = {"tokens": 17, "width": 16, "heads": 2, "patches": 16, "patch": 4, "depth": 2, "classes": 3}
DEIT_TINY = {"tokens": 197, "width": 192, "heads": 3, "patches": 196, "patch": 16, "depth": 12, "classes": 1000}
