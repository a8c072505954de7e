"""Evaluates models that differ from one dense model at one site each, from the last cut before that site on.

For all images the input of one module is kept. When the sites come in the order of execution, what is kept is brought
forward through the dense modules in between. For n models the network runs at most n + 1 times over the images: what
moving on costs is less than what it saves.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.errors import DataError
from reparam.tradeoff.cuts import Cut
from reparam.tradeoff.replay import Replay, noting, value_at
from reparam.train.data import Batches, first_images, read_batches

logger = logging.getLogger(__name__)

_PROOF_IMAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the dense model made of the images: logits (N, K) and labels (N,), on the CPU."""

    logits: Tensor
    labels: Tensor


class Evaluations:
    """The images of an evaluation, and what the dense model makes of them up to a cut.

    Args:
        dense: on `device`, in eval mode; gives logits (B, K).
        batches: gives the same images in every iteration.
        limit: how many of them are used, at most.
        cuts: of the dense model, in order.
        memory: bytes that what is kept may take; 0 keeps nothing.
        device: where the models run.
    """

    def __init__(
        self,
        dense: nn.Module,
        batches: Batches,
        *,
        limit: int,
        cuts: Sequence[Cut],
        memory: float,
        device: torch.device,
    ) -> None:
        self.device = device
        self._dense, self._batches, self._limit, self._memory = dense, batches, limit, memory
        self.cuts = tuple(cut for cut in cuts if limit * cut.bytes_per_image <= memory)
        self._replay = Replay(self.cuts)
        self._proofs: dict[str, bool] = {}
        self._blanks: list[Tensor] = []
        self._at: Cut | None = None
        self._kept: list[Tensor] = []
        self._proof: tuple[Tensor, Tensor] | None = None  # images, and their logits

    @torch.no_grad()
    def cut_before(self, position: int) -> Cut | None:
        """The last cut before an operation that fits into memory and is proved; None for the whole network."""
        return next((c for c in reversed(self.cuts) if c.position <= position and self._is_proved(c)), None)

    @torch.no_grad()
    def dense_answers(self, first: Cut | None) -> Answers:
        """Evaluates the dense model, and keeps on the way what the first cut gets; without one, the images.

        Raises:
            DataError: there are no images.
        """
        logits, labels, kept = [], [], list[Tensor]()
        with ExitStack() as stack:
            if first is not None:
                kept = stack.enter_context(noting(self._dense, first))
            for images, targets in self._images():
                with self._replay.watching(self._dense, batch=len(images)):
                    logits.append(self._dense(images).cpu())
                labels.append(targets.cpu())
                self._blanks.append(self._replay.blank(images))
                if first is None and self._limit * images[0].nbytes <= self._memory:
                    kept.append(images)
        if not logits:
            raise DataError("the evaluation split has no images")
        self._at, self._kept = first, kept
        return Answers(logits=torch.cat(logits), labels=torch.cat(labels))

    @torch.no_grad()
    def logits(self, model: nn.Module, cut: Cut | None) -> Tensor:
        """The logits (N, K), on the CPU, of a model that is the dense one up to a cut; None is its input.

        Cuts only move on: each call takes the cut of the call before, or a later one.
        """
        self._move_to(cut)
        if cut is None:
            parts = [model(images) for images in self._kept or self._images_again()]
        else:
            pairs = zip(self._kept, self._blanks, strict=True)
            parts = [self._replay.logits(model, cut, value, blank=blank) for value, blank in pairs]
        return torch.cat([part.cpu() for part in parts])

    def _move_to(self, cut: Cut | None) -> None:
        """Brings what is kept forward, a batch at a time, so that two cuts need not fit into memory together."""
        if cut == self._at:
            return
        assert cut is not None, "cuts only move on"
        if not self._kept:
            self._kept = [value_at(self._dense, cut, images=images) for images in self._images_again()]
        else:
            for place, (value, blank) in enumerate(zip(self._kept, self._blanks, strict=True)):
                self._kept[place] = (
                    value_at(self._dense, cut, images=value)
                    if self._at is None
                    else self._replay.value_from(self._dense, cut, self._at, value, blank=blank)
                )
        self._at = cut

    def _images_again(self) -> Iterator[Tensor]:
        return (images for images, _ in self._images())

    def _images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device, of `limit` images in all."""
        left = self._limit
        for images, targets in read_batches(self._batches, device=self.device):
            yield images[:left], targets[:left]
            left -= len(images)
            if left <= 0:
                return

    def _is_proved(self, cut: Cut) -> bool:
        if cut.path not in self._proofs:
            self._proofs[cut.path] = self._prove(cut)
        return self._proofs[cut.path]

    def _prove(self, cut: Cut) -> bool:
        """Whether two images get the same bits from the cut on; a forward may object to blanks in any way."""
        images, whole = self._proof or self._begin_proofs()
        try:
            value = value_at(self._dense, cut, images=images)
            return torch.equal(whole, self._replay.logits(self._dense, cut, value, blank=self._replay.blank(images)))
        except Exception as error:
            logger.debug("%s is no cut: %s", cut.path, error)
            return False

    def _begin_proofs(self) -> tuple[Tensor, Tensor]:
        images = first_images(self._batches, _PROOF_IMAGES, device=self.device)
        with self._replay.watching(self._dense, batch=len(images)):
            self._proof = images, self._dense(images)
        return self._proof
