"""Streamed data sets, webdataset's and Hugging Face's, through timm's readers.

A stream cannot be sought. Here what it gives is a function of seed, epoch, process and loader process, so an epoch that
is read again gives the same images, augmented in the same way, and what was seen of it can be dropped.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import IterableImageDataset
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import get_worker_info

from reparam.errors import DataError
from reparam.processes import process_count, process_index
from reparam.train.randomness import Draw, mix, seed_generators


class StreamReader:
    """Stands between timm's reader and its data set.

    In training each process reads its part, as timm shares it out: an epoch is rounded up to whole batches of each
    loader process. In evaluation each process reads everything and keeps every n-th image, so that each image counts
    once; timm's own share repeats some and leaves others out.

    Args:
        reader: of a split, not begun yet.
        seed: of a training run; None for evaluation.
        where: names the split in messages.
    """

    def __init__(self, reader: Any, *, seed: int | None, where: str) -> None:
        self._reader, self._seed, self._where = reader, seed, where
        self._process, self._processes = process_index(), process_count()  # loader processes do not know
        self._epoch = SharedCount()  # which loader processes that stay alive see
        self.class_to_idx: Mapping[str, int] = reader.class_to_idx
        if seed is None:
            reader.dist_rank, reader.dist_num_replicas = 0, 1

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        if self._seed is None:
            yield from (sample for i, sample in enumerate(self._read()) if i % self._processes == self._process)
            return
        worker = get_worker_info()
        place = (self._epoch.value, self._process, 0 if worker is None else worker.id)
        self._restart(mix(self._seed, Draw.ORDER, *place))
        count = 0
        for count, sample in enumerate(self._read(), start=1):
            seed_generators(self._seed, Draw.IMAGE, *place, count)
            yield sample
        due = len(self._reader) // self._reader.num_workers
        if count < due:
            raise DataError(
                f"{self._where}: one of {self._reader.global_num_workers} loader processes got {count} images where "
                f"{due} are due. Each needs a shard of its own, whose images can be read: lower --workers, start fewer "
                "processes, or check the shards, --input-key and --target-key."
            )

    def __len__(self) -> int:
        """Images of this process in an epoch, as far as they are known."""
        images = len(self._reader)
        return images if self._seed is not None else -(-(images - self._process) // self._processes)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration."""
        self._epoch.value = epoch
        self._reader.set_epoch(epoch)

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        """Tells how many loader processes there will be."""
        self._reader.set_loader_cfg(num_workers=num_workers)

    def _restart(self, seed: int) -> None:
        """Makes webdataset's shuffle begin from `seed`; its reader would draw on from the epoch before."""
        if hasattr(self._reader, "worker_seed"):
            if self._reader.ds is None:
                self._reader._lazy_init()  # finds out which loader process this is, and seeds by that
            self._reader.worker_seed, self._reader.ds = seed, None

    def _read(self) -> Iterator[tuple[Image.Image, int]]:
        try:
            yield from self._reader
        except KeyError as error:
            raise DataError(
                f"{self._where}: there is no column {error}; name the columns with --input-key and --target-key"
            ) from error
        except (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{self._where}: cannot be read on: {error}") from error


def open_stream(source: IterableImageDataset, *, seed: int | None, where: str) -> IterableImageDataset:
    """Puts a `StreamReader` into a data set that timm has opened; arguments as there.

    Raises:
        DataError: a shard of a webdataset that is not there.
    """
    _check_shards(source.reader, where=where)
    source.reader = StreamReader(source.reader, seed=seed, where=where)
    return source


def _check_shards(reader: Any, *, where: str) -> None:
    """timm passes over what it cannot open; a file that is not there is a typing error."""
    names = getattr(getattr(reader, "split_info", None), "filenames", ())
    for name in names:
        file = Path(reader.root) / name
        if not name.startswith("pipe:") and "://" not in f"{reader.root}{name}" and not file.is_file():
            raise DataError(f"{where}: {file}: no such file")
