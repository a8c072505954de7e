"""Tiny images and a tiny model for them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer


def draw_folder(
    root: Path, *, train: int = 12, val: int = 6, classes: tuple[str, ...] = ("dark", "grey", "light")
) -> Path:
    """Writes 8x8 grey PNGs whose brightness tells the class, with a little seeded noise."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("validation", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = 40 + 170 * label / max(1, len(classes) - 1) + random.normal(0, 12, (8, 8))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")
    return root


def pico_vit(*, num_classes: int = 3, seed: int = 0, **options: object) -> VisionTransformer:
    """A ViT of two blocks, width 16, for 1x8x8 images."""
    torch.manual_seed(seed)
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=num_classes, embed_dim=16, depth=2, num_heads=2, **options
    )
