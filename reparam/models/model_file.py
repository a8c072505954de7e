"""A model read from a file that has no modules of ours any more: how batches of images are fed, whatever runs it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import ModelError


class ModelFile(nn.Module):
    """The program of a file; `image` is the (channels, height, width) that it takes, None where it takes any.

    So is `batch_size`; a program that was made for one gets batches of that size, the last one filled up with blank
    images. `preparation` is what the file notes on that, with timm's keys; empty where it has no note.
    """

    def __init__(self, *, where: str, sides: Sequence[int | str], preparation: Mapping[str, Any] | None = None) -> None:
        """Takes the file's name, the sides of its input (B, C, H, W), a word for one of any length, and its note.

        Raises:
            ModelError: it takes no images.
        """
        super().__init__()
        shape = tuple(side if isinstance(side, int) and side > 0 else None for side in sides)
        if len(shape) != 4 or shape[1] not in (None, 1, 3, 4):
            raise ModelError(
                f"{where}: wanted an input (batch, channels, height, width) with 1, 3 or 4 channels, got "
                f"{list(sides)}; export it in this layout"
            )
        self.preparation = dict(preparation or {})
        self.where, self.image, self.batch_size = where, shape[1:], shape[0]

    def image_size(self, *, img_size: int | None, in_chans: int | None) -> tuple[int, int, int]:
        """Returns the (channels, height, width) to feed: the file's own, and what was given where it has none.

        Raises:
            ModelError: a side that neither tells, or that they tell differently.
        """
        given = (("--in-chans", in_chans), ("--img-size", img_size), ("--img-size", img_size))
        channels, height, width = (
            _side(own, flag, wanted, where=self.where) for own, (flag, wanted) in zip(self.image, given, strict=True)
        )
        return channels, height, width

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (B, K), float32, of images (B, C, H, W).

        Raises:
            ModelError: the program does not take these images, or does not answer with one row for each.
        """
        fed = images.split(self.batch_size or len(images))
        return torch.cat([self._logits(part) for part in fed]).to(images.device)

    @abstractmethod
    def run(self, images: Tensor) -> Tensor | None:
        """Returns the first output for images on the CPU, of the batch size that the file was made for.

        None where it is no tensor.

        Raises:
            ModelError: the program fails.
        """

    def filled(self, images: Tensor) -> Tensor:
        """Returns up to one batch of images on the CPU, with blank ones behind them where the file wants more."""
        blank = (self.batch_size or 0) - len(images)
        filled = torch.cat([images, images.new_zeros(blank, *images.shape[1:])]) if blank > 0 else images
        return filled.cpu()

    def rows(self, value: Tensor, images: Tensor) -> Tensor:
        """Returns a value of the program for `filled(images)` without the rows of blank images."""
        return value[: len(images)] if len(value) == self.batch_size else value

    def _logits(self, images: Tensor) -> Tensor:
        fed = self.filled(images)
        found = self.run(fed)
        if found is None or found.ndim < 1 or len(found) != len(fed):
            got = "none" if found is None else tuple(found.shape)
            raise ModelError(
                f"{self.where}: wanted logits (batch, classes) as its first output, got {got} for "
                f"{len(fed)} images; export it with its batch dimension dynamic, or for a fixed batch size"
            )
        return found[: len(images)].float()


def refuse_no_file(path: str | Path, *, where: str) -> None:
    """Raises ModelError where `path`, `where` in messages, is no file."""
    if not Path(path).is_file():
        raise ModelError(f"{where}: {'wanted a file, got a folder' if Path(path).is_dir() else 'no such file'}")


def _side(own: int | None, flag: str, given: int | None, *, where: str) -> int:
    side = own or given
    if side is None:
        raise ModelError(f"{where}: does not say the size of its images; give it with {flag}")
    if given not in (None, side):
        raise ModelError(f"{where}: {flag} {given} does not fit, the file was made for {side}; leave {flag} out")
    return side
