"""Training images that cannot be read: named after each epoch, and counted over all processes."""

from reparam.errors import DataError
from reparam.processes import gather_over_processes
from reparam.train.epochs import Seekable
from reparam.train.progress import Progress

#: So many are named.
_NAMED = 10


class BadImages:
    """Tells of the images that others stand in for, once each.

    Args:
        batches: the training loader.
        most: so many images are allowed, in all processes together.
        progress: who is told.
    """

    def __init__(self, batches: object, *, most: int, progress: Progress) -> None:
        self._batches, self._most, self._progress, self._told = batches, most, progress, 0

    def tell(self) -> None:
        """Tells of images that are new; every process must ask together.

        A process that meets too many by itself ends at once; here the others' are known, too.

        Raises:
            DataError: there are more than are allowed.
        """
        if not self._most or not isinstance(self._batches, Seekable):
            return
        # In another epoch another process may meet the same image.
        names = sorted({name for own in gather_over_processes(self._batches.unreadable()) for name in own})
        some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        if len(names) > self._most:
            raise DataError(
                f"{len(names)} training images cannot be read, and --max-bad-images allows {self._most}: {some}. "
                "Repair or remove them, or allow more."
            )
        if len(names) > self._told:
            self._told = len(names)
            self._progress.message(f"training images that cannot be read ({len(names)} so far) were left out: {some}")
