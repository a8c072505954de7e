"""Whether a model can take images of a size: tried on the meta device, where a forward costs no memory."""

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import nn

from reparam.errors import ModelError
from reparam.modes import evaluating


def check_input_size(model: nn.Module, input_size: tuple[int, int, int], *, name: str) -> None:
    """Runs `model`, which must be on the meta device, on one image of (channels, height, width).

    Raises:
        ModelError: the forward fails, or the patches would silently leave out the last rows and columns.
    """
    _check_patches(model, input_size[1:], name=name)
    try:
        with evaluating(model), torch.no_grad():
            model(torch.empty(1, *input_size, device="meta"))
    except Exception as error:
        channels, height, width = input_size
        raise ModelError(
            f'model "{name}" cannot take images of {channels} x {height} x {width}: {error}. Choose another --img-size.'
        ) from error


def _check_patches(model: nn.Module, size: tuple[int, int], *, name: str) -> None:
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad:
        return
    for length, patch in zip(size, embed.patch_size, strict=True):
        if length % patch:
            below, above = length // patch * patch, -(-length // patch) * patch
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ModelError(
                f'model "{name}" cuts images into patches of {patch}, and {length} is not a multiple of it. '
                f"Choose --img-size {nearest}."
            )
